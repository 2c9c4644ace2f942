"""A WireGuard gateway of ours: what passes, what is refused, and what happens when pilots or parts of it go."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from engine_site import Used, by_wireguard
from shell_pilot import ShellPilot, children, descendants, fetch, wait_until
from vpn_faults import HeldFlow, cmdline

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteWireguardGateway, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services.oddities import ECHO_PORT, REFUSED_PORT

HERE = Path(__file__).parent
FAR = plan.WORLD["http"]


@pytest.fixture(scope="module")
def gateway(site, services, tmp_path_factory):
    with SiteWireguardGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def start_pilot(site, gateway, tmp_path):
    """Starts pilots of these names, which end with the test."""
    pilots = []

    def start(name):
        config = tmp_path / f"{name}.conf"
        gateway.pilots("add", name, "-o", str(config))
        (tmp_path / name).mkdir()
        pilots.append(ShellPilot(site, Used(gateway, by_wireguard(config), "udp"), tmp_path / name))
        return pilots[-1]

    yield start
    for pilot in pilots:
        pilot.kill()


def run(site, gateway, *command):
    used = Used(gateway, by_wireguard(gateway.config), "udp")
    done = site.node.run(used.run_argv(command), timeout_seconds=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("address", FAR)
def test_datagrams_of_all_sizes(site, gateway, address):
    asked = [f"{address},{ECHO_PORT},{size},3" for size in (1, 1372, 1393, 1473, 9000, 60000)]
    said = run(site, gateway, sys.executable, str(HERE / "udp_client.py"), *asked)
    assert said.split() == ["ok"] * len(asked)


@pytest.mark.parametrize("address", FAR)
def test_ping(site, gateway, address):
    assert "1 received" in run(site, gateway, "ping", "-c", "1", "-W", "20", str(address))


def test_what_must_not_be_reached(site, gateway):
    """Nor the gateway itself, nor other pilots, nor what the far side refuses; and each is told as it is."""
    code = (
        "import errno, socket, sys\n"
        "for address, port in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    try:\n"
        "        with socket.create_connection((address, int(port)), 20) as connection:\n"
        "            connection.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "            print('answered' if connection.recv(1) else 'ended')\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
    )
    own = (str(plan.DMZ_INSIDE.v4), str(plan.DMZ_OUTSIDE.v4), "127.0.0.1", "198.18.128.2", "10.1.0.2")
    asked = [word for address in own for word in (address, "8443")]
    said = run(site, gateway, sys.executable, "-c", code, *asked, str(FAR.v4), str(REFUSED_PORT), str(FAR.v4), "80")
    *refused, far, good = said.split()
    assert not {"answered", "ended"}.intersection(refused)
    assert far in ("ECONNREFUSED", "ECONNRESET")
    assert good == "answered"


def test_a_pilot_that_is_revoked_is_cut_and_others_go_on(gateway, start_pilot, tmp_path):
    one, other = start_pilot("one"), start_pilot("other")
    (tmp_path / "flow").mkdir()
    (tmp_path / "cut").mkdir()
    flow = HeldFlow(other, tmp_path / "flow")
    HeldFlow(one, tmp_path / "cut")
    begin = time.monotonic()
    gateway.pilots("revoke", "one")
    one.wait_for("down")
    assert time.monotonic() - begin < 30
    wait_for_log(gateway.log, b"flow pilot=one to=203.0.113.20 port=7", gateway.process)
    assert flow.end() == "before after"
    assert other.ask(fetch()) == "1000"
    other.end()
    gateway.pilots("revoke", "other")


def test_a_pilot_that_is_made_anew_is_another_one(gateway, start_pilot, tmp_path):
    pilot = start_pilot("twice")
    HeldFlow(pilot, tmp_path)
    before = gateway.log.stat().st_size
    gateway.pilots("revoke", "twice")
    gateway.pilots("add", "twice", "-o", str(tmp_path / "other.conf"))
    wait_for_log(gateway.log, rb"flow pilot=twice .* outcome=cut", gateway.process, start_bytes=before)
    gateway.pilots("revoke", "twice")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_connections_outlive_a_death_of_wireguard_go(gateway, start_pilot, tmp_path, number):
    pilot = start_pilot("pilot2")
    flow = HeldFlow(pilot, tmp_path)
    (before,) = wireguard_processes(gateway)
    os.kill(before, number)
    wait_until(lambda: [pid for pid in wireguard_processes(gateway) if pid != before], 60)
    assert flow.end() == "before after"
    assert pilot.ask(fetch()) == "1000"
    pilot.end()
    gateway.pilots("revoke", "pilot2")


def test_a_path_that_swallows_large_packets_is_slow_at_most(gateway, start_pilot, link):
    pilot = start_pilot("pilot3")
    assert pilot.ask(fetch()) == "1000"
    link.shape(mtu=1400, mtu_told=False)
    assert pilot.ask(fetch(300_000, 60), 70) == "300000"
    assert pilot.state()["state"] == "up"
    pilot.end()
    gateway.pilots("revoke", "pilot3")


def wireguard_processes(gateway):
    return [pid for pid in descendants(gateway.process.pid) if cmdline(pid).split(b"\0")[0].endswith(b"/wireguard-go")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(site, services, tmp_path, number):
    before = set(site.processes())
    with SiteWireguardGateway(site.dmz, tmp_path, 51822) as gateway:
        assert children(gateway.process.pid)
        gateway.process.send_signal(number)
        code = gateway.process.wait(60)
        gateway.process = None
    assert code == (0 if number == signal.SIGTERM else -number)
    wait_until(lambda: set(site.processes()) <= before)  # and of those some may have been ending


def test_a_port_that_is_taken(site, gateway, tmp_path):
    config = gateway.folder / "gateway.conf"
    argv = vpn_command("gateway", "--config", str(config), "--dir", str(tmp_path / "other"))
    done = site.dmz.run(argv, timeout_seconds=60)
    assert done.returncode == 80
    assert "cannot listen on UDP port 51821: Address already in use" in done.stderr


def test_it_is_no_more_than_an_ordinary_user(gateway):
    """It has no capability, nor has what writes its ledger; what has some has them in namespaces of its own."""
    host = os.stat(f"/proc/{gateway.process.pid}/ns/user").st_ino
    below = wait_until(lambda: len(found := descendants(gateway.process.pid)) == 3 and found)
    (outside,) = [pid for pid in below if os.stat(f"/proc/{pid}/ns/user").st_ino == host]
    for pid in (gateway.process.pid, outside):
        assert f"CapEff:\t{'0' * 16}\n" in Path(f"/proc/{pid}/status").read_text()
