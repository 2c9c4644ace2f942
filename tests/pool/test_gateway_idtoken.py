"""Tokens that HTCondor itself makes, at a gateway that has the pool's signing keys."""

import sys

import pytest

from htcondor_vpn.gateway.trust.identity import Presented
from htcondor_vpn.gateway.trust.idtoken import Pool
from htcondor_vpn.gateway.trust.jwt_bearer import JsonWebTokens
from htcondor_vpn.testbed.condor_folder import TRUST_DOMAIN
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT

pytestmark = pytest.mark.pool


def made(pool, *arguments):
    return pool.tool("condor_token_create", "-identity", f"pilot@{TRUST_DOMAIN}", *arguments).strip()


@pytest.mark.parametrize("key", ["POOL", "pilots"])
def test_the_signing_key_is_derived_as_htcondor_does(pool, key):
    if key != "POOL":
        pool.instance.write_secret(f"passwords.d/{key}", "0123456789abcdef0123456789abcdef")
    tokens = JsonWebTokens([Pool(TRUST_DOMAIN, pool.instance.folder / "passwords.d", ["condor:/ADVERTISE_STARTD"])])
    identity = tokens.identify(Presented(bearer=made(pool, "-key", key, "-lifetime", "600")))
    assert identity.name == f"idtoken:pilot@{TRUST_DOMAIN}"
    assert f"kid:{key}" in identity.marks
    pilots = made(pool, "-key", key, "-authz", "ADVERTISE_STARTD", "-authz", "READ")
    assert tokens.identify(Presented(bearer=pilots)).credential != identity.credential


#: Asks a server in the world again and again on one connection, until it is cut.
ASKING = f"""
import http.client, time
connection = http.client.HTTPConnection("http.site.example", {HTTP_PORT}, timeout=30)
try:
    while True:
        connection.request("GET", "/peer")
        connection.getresponse().read()
        print("answered", flush=True)
        time.sleep(0.2)
except OSError:
    print("cut", flush=True)
"""


@pytest.mark.parametrize("suite", ["sid"], indirect=True)
def test_a_pilot_shows_its_idtoken_until_that_is_denied(pool, site, services, tmp_path):
    config = tmp_path / "gateway.conf"
    config.write_text(
        f"HTCONDOR_VPN_GATEWAY_IDTOKEN_ISSUER = {TRUST_DOMAIN}\n"
        f"HTCONDOR_VPN_GATEWAY_IDTOKEN_KEYS = {pool.instance.folder}/passwords.d\n"
        "HTCONDOR_VPN_GATEWAY_PILOTS = idtoken:pilot@*\n"
    )
    token, log = tmp_path / "idtoken", tmp_path / "pilot.log"
    token.write_text(pool.pilot_token())
    token.chmod(0o600)
    log.touch()
    with SiteGateway(site.dmz, tmp_path / "gateway", "--config", str(config)) as gateway:
        argv = gateway.run_argv([sys.executable, "-c", ASKING], "--token-file", str(token))
        pilot = site.node.start(argv, log=log)
        wait_for_log(log, b"^answered$", pilot, timeout_seconds=120)
        site.dmz.run(
            vpn_command("gateway", "--dir", str(gateway.state_folder), "deny", "add", f"idtoken:pilot@{TRUST_DOMAIN}"),
            check=True,
        )
        wait_for_log(log, b"^cut$", pilot, timeout_seconds=120)
        assert pilot.wait(60) == 0
        token.write_text(pool.tool("condor_token_create", "-identity", f"alice@{TRUST_DOMAIN}").strip())
        refused = site.node.run(gateway.run_argv(["true"], "--token-file", str(token)))
        assert refused.returncode == 77
        for pattern in (
            rf"pilot=idtoken:pilot@{TRUST_DOMAIN} to=", "outcome=credential_revoked",
            "alice@testbed is none of the pilots that are admitted",
        ):  # fmt: skip
            wait_for_log(gateway.log, pattern.encode(), gateway.process)
        said = gateway.log.read_text()
    assert token.read_text() not in said
