"""`htcondor-vpn run` by WireGuard: a real server, an unmodified wireguard-go, and all that can go wrong with them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from engine_site import Used, by_wireguard, hosts, pilots_processes, sets, trusting
from shell_pilot import ShellPilot, children, fetch, wait_until
from vpn_faults import ECHO, HERE, HeldFlow, cmdline, parent, udp_is_blocked

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.services.oddities import ECHO_PORT
from htcondor_vpn.testbed.settling import ip
from htcondor_vpn.testbed.site import NODE, SITE_LINK
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go
from htcondor_vpn.testbed.wireguard_server import WireguardServer


@pytest.fixture(scope="module")
def server(site, services, tmp_path_factory):
    with WireguardServer(site, tmp_path_factory.mktemp("wireguard")) as server:
        yield server


@pytest.fixture
def used(server):
    return Used(server, by_wireguard(server.config), "udp")


@pytest.fixture
def pilot(site, used, tmp_path):
    pilot = ShellPilot(site, used, tmp_path)
    yield pilot
    pilot.kill()


def wireguard_process(pilot):
    """The wireguard-go of a pilot: below its engine, and the process of the namespace."""

    def find():
        for engine in children(pilot.process.pid):
            for room in children(engine):
                for pid in children(room):
                    if cmdline(pid).split(b"\0")[0].endswith(b"/wireguard-go"):
                        return pid
        return None

    return wait_until(find)


@pytest.mark.parametrize("address", ECHO)
def test_datagrams_as_long_as_the_path_takes_them(site, used, address):
    asked = [f"{address},{ECHO_PORT},{size},3" for size in (1, 1200, 1372)]
    done = site.node.run(used.run_argv([sys.executable, str(HERE / "udp_client.py"), *asked]), timeout_seconds=90)
    assert done.stdout.split() == ["ok"] * len(asked), done.stderr


@pytest.mark.parametrize("address", ECHO)
def test_ping(pilot, address):
    assert "1 packets transmitted, 1 received" in pilot.ask(f"ping -n -c 1 -W 15 {address}")


@pytest.mark.parametrize(
    ("victim", "number"),
    [("wireguard-go", signal.SIGKILL), ("wireguard-go", signal.SIGSTOP), ("its namespace's process", signal.SIGKILL),
     ("its namespace's process", signal.SIGSTOP), ("engine", signal.SIGKILL)],
)  # fmt: skip
def test_what_is_killed_or_stopped_is_started_again(site, pilot, tmp_path, victim, number):
    flow = HeldFlow(pilot, tmp_path)
    before = wireguard_process(pilot)
    of = {"wireguard-go": before, "its namespace's process": parent(before), "engine": parent(parent(before))}
    os.kill(of[victim], number)
    wait_until(lambda: not Path(f"/proc/{before}").exists(), 60)
    pilot.wait_for("up")
    wait_until(lambda: pilot.ask(fetch()) == "1000", 60)
    assert wireguard_process(pilot) != before
    # A namespace's sockets are of no use without it, and the engine's go with it.
    assert ("before after" if victim == "wireguard-go" else "ConnectionReset") in flow.end()
    pilot.end()


def test_connections_outlive_a_restart_of_the_server(server, pilot, tmp_path):
    flow = HeldFlow(pilot, tmp_path)
    server.stop()
    pilot.wait_for("down")
    server.start()
    pilot.wait_for("up", 120)
    assert flow.end() == "before after"
    pilot.end()


def test_connections_outlive_a_change_of_the_nodes_address(site, pilot, tmp_path):
    flow = HeldFlow(pilot, tmp_path)
    ip(NODE, f"addr del {plan.NODE.v4}/24 dev {SITE_LINK}", f"addr add 10.1.0.77/24 dev {SITE_LINK}")
    try:
        assert flow.end() == "before after"
        wait_until(lambda: pilot.state()["state"] == "up")
    finally:
        ip(NODE, f"addr del 10.1.0.77/24 dev {SITE_LINK}", f"addr add {plan.NODE.v4}/24 dev {SITE_LINK}")
    wait_until(lambda: pilot.ask(fetch()) == "1000")
    pilot.end()


def test_a_name_of_which_some_addresses_are_of_no_use(site, server, tmp_path):
    """The first is one by which nothing passes; the resolver puts it there, as it is nearer to the node's own."""
    config = tmp_path / "named.conf"
    named = "vpn.site.example"
    config.write_text(server.config.read_text().replace(f"{plan.DMZ_INSIDE.v4}:", f"{named}:"))
    config.chmod(0o600)
    with hosts(site, named, plan.DMZ_INSIDE.v4, "10.1.0.3"):
        pilot = ShellPilot(site, Used(server, by_wireguard(config), "udp"), tmp_path)
        try:
            assert "there was no handshake at 10.1.0.3" in (pilot.run_dir / "run.log").read_text()
            assert pilot.ask(fetch()) == "1000"
            os.kill(wireguard_process(pilot), signal.SIGKILL)
            wait_until(lambda: pilot.ask(fetch()) == "1000")
            assert (pilot.run_dir / "run.log").read_text().count("there was no handshake") == 1
            pilot.end()
        finally:
            pilot.kill()


def test_a_link_with_a_smaller_mtu_is_noticed(site, pilot):
    ip(NODE, f"link set {SITE_LINK} mtu 1400")
    try:
        wait_until(lambda: b"may have 1340 bytes now" in (pilot.run_dir / "run.log").read_bytes())
        assert pilot.ask(fetch(1_000_000, 60), 70) == "1000000"
    finally:
        ip(NODE, f"link set {SITE_LINK} mtu 1500")
    wait_until(lambda: b"may have 1420 bytes now" in (pilot.run_dir / "run.log").read_bytes())
    pilot.end()


@pytest.mark.parametrize("others", [[], ["wireguard-go"], ["engine", "wireguard-go"]])
def test_a_killed_run_leaves_nothing(site, used, tmp_path, others):
    before = pilots_processes(site)
    pilot = ShellPilot(site, used, tmp_path)
    wireguard = wireguard_process(pilot)
    of = {"wireguard-go": wireguard, "engine": parent(parent(wireguard))}
    victims = [of[other] for other in others] + [pilot.process.pid]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    pilot.process.wait(60)
    wait_until(lambda: pilots_processes(site) <= before)  # and of those some may have been ending
    with suppress(BrokenPipeError):
        pilot.process.stdin.close()


def test_nothing_leaves_but_to_the_server(site, used, tmp_path):
    ways = [f"default via {gateway}" for gateway in plan.DMZ_INSIDE]
    for way in ways:
        ip(NODE, f"route add {way}")
    try:
        with Capture(site, allowed=used.allowed) as capture:
            pilot = ShellPilot(site, used, tmp_path)
            try:
                assert pilot.ask(fetch()) == "1000"
                for _ in range(2):
                    os.kill(wireguard_process(pilot), signal.SIGKILL)
                    pilot.ask(fetch())
                    pilot.wait_for("up")
                os.kill(parent(parent(wireguard_process(pilot))), signal.SIGKILL)
                pilot.ask(fetch())
                pilot.wait_for("up")
                pilot.end()
            finally:
                pilot.kill()
    finally:
        for way in ways:
            ip(NODE, f"route delete {way}")
    # That nobody listens any more, told by the node's kernel to who still sends to a wireguard-go that was killed.
    told = f"IPv4 {plan.NODE.v4} > {plan.DMZ_INSIDE.v4} protocol 1"
    assert {str(packet) for packet in capture.foreign} - {told} == set()
    assert capture.total > 0


def test_blocked_udp_is_said_in_time_and_auto_goes_on(site, server, used, tmp_path):
    with SiteGateway(site.dmz, tmp_path / "gateway") as gateway, udp_is_blocked(site):
        auto = {**used.knobs, **trusting(gateway), "ENGINE": "auto", "ENGINE_ORDER": "wireguard stream"}
        log = tmp_path / "auto.log"
        log.touch()
        argv = vpn_command("run", "-v", *sets(auto), "--", "sh", "-c", fetch())
        going_on = site.node.start(argv, log=log, stdout=subprocess.PIPE)
        begin = time.monotonic()
        done = site.node.run(used.run_argv(["true"], "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=8"), timeout_seconds=60)
        took = time.monotonic() - begin
        out, _ = going_on.communicate(timeout=120)
    assert done.returncode == 69
    assert f"the WireGuard server {server.endpoint} does not answer: there was no handshake" in done.stderr
    assert took < 45
    assert out.decode() == "1000"
    assert "engine wireguard does not work: the WireGuard server" in log.read_text()


def test_a_wrong_key_of_the_server(site, server, used):
    server.write_config(b"\x01" * 32)
    try:
        done = site.node.run(used.run_argv(["true"], "--set", "HTCONDOR_VPN_CONNECT_TIMEOUT=8"), timeout_seconds=60)
    finally:
        server.write_config(server.server_key)
    assert done.returncode == 69
    assert "check that the keys of both sides match" in done.stderr


def test_what_is_wrong_before_anything_is_started(site, server, tmp_path):
    old, config = tmp_path / "wireguard-go", tmp_path / "wg.conf"
    old.write_text("#!/bin/sh\necho wireguard-go 0.0.20220316\n")
    old.chmod(0o755)
    config.touch(0o600)
    config.write_text(server.config.read_text().replace("[Peer]", "PostUp = touch ran\n[Peer]"))
    bare = tmp_path / "bare.conf"
    bare.touch(0o600)
    bare.write_text("\n".join(line for line in server.config.read_text().splitlines() if "DNS" not in line))
    for knobs, code, words in (
        ({"WIREGUARD_GO": old}, 72, "0.0.20220316, which is too old"),
        ({"WIREGUARD_GO": tmp_path / "nowhere"}, 72, "cannot be run"),
        ({"WIREGUARD_CONFIG_FILES": config}, 66, "PostUp is refused: no commands are run"),
        ({"WIREGUARD_CONFIG_FILES": bare}, 78, "add DNS = ADDRESS to it"),
        ({"WIREGUARD_CONFIG_FILES": ""}, 78, "no WireGuard server is configured"),
    ):
        used = Used(server, {**by_wireguard(server.config), **knobs}, "udp")
        done = site.node.run(used.run_argv(["true"]), timeout_seconds=60)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert not Path("ran").exists()


def test_its_key_is_nowhere_to_be_seen(site, server, pilot):
    """Neither in a command line nor in an environment nor in the log."""
    key = server.config.read_text().partition("PrivateKey = ")[2].partition("\n")[0]
    seen = (pilot.run_dir / "run.log").read_bytes()
    pid = wireguard_process(pilot)
    for name in ("cmdline", "environ"):
        seen += Path(f"/proc/{pid}/{name}").read_bytes()
    assert key.encode() not in seen
    assert str(wireguard_go()).encode() in seen
    pilot.end()
