"""The WireGuard gateway of root: its tun is the host's, whose kernel forwards and translates."""

import os
import signal
import time

import pytest
from engine_site import Used, by_wireguard
from packet_gateways import OcservGateway, check_everything, check_forbidden, network
from shell_pilot import ShellPilot, descendants, fetch, wait_until
from vpn_faults import HeldFlow, cmdline

from htcondor_vpn.testbed.gateway import SiteWireguardGateway


@pytest.fixture
def gateway(site, services, tmp_path):
    before, processes = network(site.dmz), set(site.processes())
    with SiteWireguardGateway(site.dmz, tmp_path / "w", as_root=True) as gateway:
        yield gateway
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0
        wait_until(lambda: set(site.processes()) <= processes)
        wait_until(lambda: network(site.dmz) == before)
        gateway.process = None


def pilot_of(site, gateway, tmp_path, config=None):
    tmp_path.mkdir(exist_ok=True)
    return ShellPilot(site, Used(gateway, by_wireguard(config or gateway.config), "udp"), tmp_path)


@pytest.fixture
def pilot(site, gateway, tmp_path):
    pilot = pilot_of(site, gateway, tmp_path)
    yield pilot
    pilot.kill()


def test_it_carries_everything_where_it_may(site, gateway, pilot, tmp_path):
    rules = network(site.dmz)
    assert "table inet htcondor_vpn_gateway_wireguard" in rules
    assert "htvj-wg" in rules
    assert pilot.ask(fetch(3_000_000, 20)) == "3000000"
    check_everything(pilot)
    gateway.pilots("add", "other", "-o", str(tmp_path / "other.conf"))
    other = pilot_of(site, gateway, tmp_path / "other", tmp_path / "other.conf")
    try:
        assert other.ask(fetch()) == "1000"
        check_forbidden(pilot, "198.18.0.1 22", "198.18.128.2 22", "127.0.0.1 22")
        other.end()
    finally:
        other.kill()
    pilot.end()


def test_connections_outlive_a_death_of_wireguard_go_and_a_revoked_pilot_is_out(gateway, pilot, tmp_path):
    flow = HeldFlow(pilot, tmp_path)
    (before,) = wireguard_processes(gateway)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: [pid for pid in wireguard_processes(gateway) if pid != before])
    assert flow.end() == "before after"
    assert pilot.ask(fetch()) == "1000"
    begin = time.monotonic()
    gateway.pilots("revoke", "pilot")
    pilot.wait_for("down")
    assert time.monotonic() - begin < 30
    assert pilot.ask(fetch(1000, 2)) == "0"
    pilot.end()


def wireguard_processes(gateway):
    return [pid for pid in descendants(gateway.process.pid) if cmdline(pid).split(b"\0")[0].endswith(b"/wireguard-go")]


def test_two_gateways_of_root_and_the_last_one_restores_what_the_first_one_found(site, services, tmp_path):
    before = network(site.dmz)
    assert "net.ipv4.ip_forward = 0" in before
    ocserv = OcservGateway(site.dmz, tmp_path / "o", True)
    try:
        with SiteWireguardGateway(site.dmz, tmp_path / "w", as_root=True) as gateway:
            assert ocserv.stop() == 0
            pilot = pilot_of(site, gateway, tmp_path / "p")
            try:
                assert pilot.ask(fetch(1000, 20)) == "1000"
                pilot.end()
            finally:
                pilot.kill()
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(60) == 0
            gateway.process = None
    finally:
        ocserv.process.kill()
        ocserv.process.wait(60)
    wait_until(lambda: network(site.dmz) == before)


def test_a_killed_gateway_leaves_nothing(site, services, tmp_path):
    before, processes = network(site.dmz), set(site.processes())
    with SiteWireguardGateway(site.dmz, tmp_path / "w", as_root=True) as gateway:
        assert network(site.dmz) != before
        gateway.process.kill()
        gateway.process.wait(60)
        gateway.process = None
        wait_until(lambda: set(site.processes()) <= processes)
        wait_until(lambda: network(site.dmz) == before)
