"""`htcondor-vpn run` through what a site has already: squid, dante, sshd, a WireGuard server, and several gateways."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine_site import pilots_processes, sets, use
from shell_pilot import ShellPilot as Pilot
from shell_pilot import fetch

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.settling import ip
from htcondor_vpn.testbed.site import NODE

KINDS = [
    "proxy", "socks5", "ssh", "ssh by a hop", "stream by a proxy", "wireguard",
    "wireguard by our gateway", "openconnect", "openconnect over TLS by a certificate",
]  # fmt: skip
CLIENT = Path(__file__).with_name("engine_client.py")


@pytest.fixture(scope="module", params=KINDS)
def used(request, site, services, tmp_path_factory):
    with ExitStack() as exits:
        yield use(request.param, site, tmp_path_factory.mktemp("engine"), exits)


@pytest.fixture(scope="module")
def seen(site, used):
    """What a client saw in the tunnel, on a node that could leak by its routing table, and what left the node."""
    ways = [f"default via {gateway}" for gateway in plan.DMZ_INSIDE]
    for way in ways:
        ip(NODE, f"route add {way}")
    try:
        with Capture(site, allowed=used.allowed) as capture:
            command, options = [sys.executable, str(CLIENT), f"http.{plan.ZONE}"], sets({"ENGINE_WORKERS": 2})
            done = site.node.run(used.run_argv(command, *options), timeout_seconds=240)
    finally:
        for way in ways:
            ip(NODE, f"route delete {way}")
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "foreign": [str(packet) for packet in capture.foreign], "total": capture.total}


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_content_is_right_both_ways(seen, family):
    assert seen[family]["download"] == seen["expected"]
    assert seen[family]["upload"] == seen["expected"]


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_half_close(used, seen, family):
    count, how = seen[family]["half_close"]
    if used.knobs.get("ENGINE") == "proxy":  # squid ends both sides: that must not pass for a whole answer
        assert how == "ECONNRESET"
    else:
        assert (count, how) == (5, "end")


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_reset(used, seen, family):
    count, how = seen[family]["reset"]
    if used.knobs.get("ENGINE", "stream") in ("stream", "wireguard", "openconnect"):
        assert how == "ECONNRESET"
    else:  # none of these programs passes a reset on
        assert how == "end"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_port_that_refuses_is_reported(used, seen, family):
    why_is_not_told = used.knobs.get("ENGINE") == "ssh"
    assert seen[family]["refused"] == ("EHOSTUNREACH" if why_is_not_told else "ECONNREFUSED")


def test_nothing_else_left_the_node(seen):
    assert seen["foreign"] == []
    assert seen["total"] > 0


def test_it_goes_and_comes_back(site, used, tmp_path):
    pilot = Pilot(site, used, tmp_path)
    try:
        state = pilot.state()
        assert state["engine"] == used.knobs.get("ENGINE", "stream")
        assert state["families"] == ["ipv4", "ipv6"]
        assert pilot.ask(fetch()) == "1000"
        used.stop()
        pilot.wait_for("down")
        used.start()
        pilot.wait_for("up", 120)
        assert pilot.ask(fetch()) == "1000"
        pilot.end()
    finally:
        pilot.kill()


def test_nothing_is_left(site, used):
    before = pilots_processes(site)
    assert site.node.run(used.run_argv(["true"])).returncode == 0
    assert pilots_processes(site) <= before  # of which some may have been ending
