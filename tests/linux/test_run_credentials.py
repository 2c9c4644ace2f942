"""Pilots that show what others have issued: a client certificate, a SciToken."""

import datetime
import json
import time

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from engine_site import sets

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT

pytestmark = pytest.mark.linux

ISSUER, AUDIENCE = "https://issuer.example", "https://gw.example"


def certificate(name, issuer, key, issuer_key, ca):
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(common(name)).issuer_name(common(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def common(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    """A folder with a CA, a certificate of it, and the keys of an issuer of SciTokens; and that issuer's key."""
    folder = tmp_path_factory.mktemp("issued")
    ca_key, key, token_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    (folder / "ca.pem").write_bytes(certificate("CA", "CA", ca_key, ca_key, ca=True))
    (folder / "pilot.pem").write_bytes(certificate("pilot-7", "CA", key, ca_key, ca=False))
    (folder / "pilot.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "pilot.key").chmod(0o600)
    public = jwt.algorithms.ECAlgorithm.to_jwk(token_key.public_key(), as_dict=True)
    (folder / "keys.json").write_text(json.dumps({"keys": [{**public, "kid": "k"}]}))
    return folder, token_key


@pytest.fixture(scope="module")
def gateway(site, issued, tmp_path_factory):
    folder, _ = issued
    config = folder / "gateway.conf"
    config.write_text(
        f"HTCONDOR_VPN_GATEWAY_CLIENT_CA_FILE = {folder}/ca.pem\n"
        f"HTCONDOR_VPN_GATEWAY_SCITOKEN_ISSUERS = {ISSUER}={folder}/keys.json\n"
        f"HTCONDOR_VPN_GATEWAY_SCITOKEN_AUDIENCES = {AUDIENCE}\n"
    )
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway"), "--config", str(config)) as gateway:
        yield gateway


def fetch(site, gateway, **knobs):
    """Runs a command in a tunnel that only these knobs admit to."""
    told = {"GATEWAYS": gateway.endpoints[0], "GATEWAY_PIN_FILE": gateway.pin_file, **knobs}
    address = f"http://{plan.WORLD['http'].v4}:{HTTP_PORT}/peer"
    return site.node.run(vpn_command("run", *sets(told), "--", "curl", "-sS", "--max-time", "20", address))


def test_a_certificate(site, services, gateway, issued):
    folder, _ = issued
    done = fetch(site, gateway, CERTIFICATE_FILE=folder / "pilot.pem", KEY_FILE=folder / "pilot.key")
    assert (done.returncode, done.stderr) == (0, "")
    wait_for_log(gateway.log, b"pilot=certificate:pilot-7 to=", gateway.process)
    alone = fetch(site, gateway, CERTIFICATE_FILE=folder / "pilot.pem")
    assert (alone.returncode, alone.stderr.count("\n")) == (78, 1)


def test_a_scitoken(site, services, gateway, issued, tmp_path):
    _, key = issued
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": "pilot", "aud": AUDIENCE, "exp": now + 600, "nbf": now, "iat": now}
    token = tmp_path / "scitoken"
    token.touch(mode=0o600)
    token.write_text(jwt.encode(claims, key, "ES256", headers={"kid": "k"}))
    done = fetch(site, gateway, TOKEN_FILE=token)
    assert (done.returncode, done.stderr) == (0, "")
    wait_for_log(gateway.log, b"pilot=scitoken:pilot@issuer.example to=", gateway.process)
    token.write_text(jwt.encode({**claims, "aud": "another"}, key, "ES256", headers={"kid": "k"}))
    refused = fetch(site, gateway, TOKEN_FILE=token)
    assert (refused.returncode, refused.stderr.count("\n")) == (77, 1)
    assert token.read_text() not in refused.stderr + gateway.log.read_text()
