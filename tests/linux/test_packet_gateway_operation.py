"""What an operator sees and does of the gateways for packets, in both forms of each: status, ledger, drain, revoke."""

import json
import time

import pytest
from engine_site import Used, by_wireguard
from packet_gateways import OcservGateway
from shell_pilot import ShellPilot, fetch, wait_until
from vpn_faults import HeldFlow

from htcondor_vpn.testbed.gateway import SiteWireguardGateway


class Wireguard:
    """See `Ocserv`, which is its like."""

    def __init__(self, site, folder, as_root):
        self.site, self.folder = site, folder
        self.gateway = SiteWireguardGateway(site.dmz, folder / "w", as_root=as_root)
        self.gateway.__enter__()
        self.process, self.verb = self.gateway.process, self.gateway.verb
        self.log = self.gateway.log

    def add(self, name):
        self.gateway.pilots("add", name, "-o", str(self.folder / f"{name}.conf"))

    def revoke(self, name):
        self.gateway.pilots("revoke", name)

    def used(self, name):
        return Used(self.gateway, by_wireguard(self.folder / f"{name}.conf"), "udp")


class Ocserv:
    """A gateway that runs; pilots are `used` by their names."""

    def __init__(self, site, folder, as_root):
        self.site, self.folder = site, folder
        self.gateway = OcservGateway(site.dmz, folder / "o", as_root)
        self.process, self.verb, self.log = self.gateway.process, self.gateway.any_verb, self.gateway.log

    def add(self, name):
        self.gateway.verb("add", name, "-o", str(self.folder / f"{name}.password"))

    def revoke(self, name):
        self.gateway.verb("revoke", name)

    def used(self, name):
        knobs = {**self.gateway.used().knobs, "OPENCONNECT_CREDENTIALS_FILE": self.folder / f"{name}.password"}
        return Used(self.gateway, knobs, "tcp", "udp")


@pytest.fixture(params=[(kind, as_root) for kind in (Wireguard, Ocserv) for as_root in (False, True)],
                ids=lambda param: f"{param[0].__name__}-{'root' if param[1] else 'ordinary'}")  # fmt: skip
def gateway(request, site, services, tmp_path):
    kind, as_root = request.param
    gateway = kind(site, tmp_path, as_root)
    yield gateway
    gateway.process.kill()
    gateway.process.wait(60)


@pytest.fixture
def start(site, gateway, tmp_path):
    pilots = []

    def start(name):
        (tmp_path / name).mkdir()
        pilots.append(ShellPilot(site, gateway.used(name), tmp_path / name))
        return pilots[-1]

    yield start
    for pilot in pilots:
        pilot.kill()


def status(gateway):
    return json.loads(gateway.verb("status", "--json"))


def test_sessions_are_counted_recorded_drained_and_cut(site, gateway, start, tmp_path):
    for name in ("one", "two", "three", "late"):
        gateway.add(name)
    one, two = start("one"), start("two")
    assert one.ask(fetch(3_000_000, 20)) == "3000000"
    wait_until(lambda: status(gateway)["pilots"].get("one", {}).get("bytes_down", 0) >= 3_000_000)
    now = wait_until(lambda: (now := status(gateway))["flows"] == 2 and "two" in now["pilots"] and now)
    assert (now["pilots"]["one"]["flows"], now["draining"]) == (1, False)
    assert 0 < now["pilots"]["one"]["bytes_up"] < 3_000_000
    assert now["pilots"]["two"]["bytes_down"] < 3_000_000
    assert "2 sessions (0 have ended)" in gateway.verb("status")

    flow = HeldFlow(one, tmp_path / "one")
    begin = time.monotonic()
    gateway.revoke("two")
    two.wait_for("down")
    wait_until(lambda: status(gateway)["pilots"].get("two", {}).get("flows") == 0)
    assert time.monotonic() - begin < 30  # of a busy machine; without load it is one to two seconds
    one.wait_for("up", 120)
    assert flow.end() == "before after"

    three = start("three")
    assert three.ask(fetch()) == "1000"
    assert "2 sessions go on" in gateway.verb("drain")  # with the one that has just begun
    assert status(gateway)["draining"]
    refused = site.node.run(
        gateway.used("late").run_argv(["true"], "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=5"), timeout_seconds=60
    )
    assert refused.returncode not in (0, 1), refused.stderr
    assert (one.ask(fetch()), three.ask(fetch())) == ("1000", "1000")
    gateway.verb("drain", "--timeout", "1s", "--wait")
    assert gateway.process.wait(60) == 0
    rows = {row["pilot"]: row for row in json.loads(gateway.verb("ledger", "--json"))}
    assert rows["one"]["bytes_down"] >= 3_000_000
    assert rows["two"]["flows"] >= 1
    assert "late" not in rows
    outcomes = {row["outcome"] for row in json.loads(gateway.verb("ledger", "--by", "outcome", "--json"))}
    assert {"credential_revoked", "gateway_ended"} <= outcomes
    one.kill()
