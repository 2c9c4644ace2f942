"""`htcondor-vpn gateway --kind ocserv`: of an ordinary user, and of root with the kernel's NAT."""

import os
import signal
import sys

import pytest
from engine_site import Used
from shell_pilot import ShellPilot, fetch, wait_until
from vpn_faults import ECHO, HERE, HeldFlow

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import PORT, vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services.oddities import ECHO_PORT


class OcservGateway:
    """The gateway in the DMZ, as its root or its ordinary user, until the end of the test."""

    endpoint = f"{plan.DMZ_INSIDE.v4}:{PORT}"

    def __init__(self, host, folder, as_root):
        self.host, self.folder, self.as_root = host, folder, as_root
        folder.mkdir(mode=0o700)
        self.credentials, self.log = folder / "vpn.password", folder / "log"
        self.verb("add", "pilot", "-o", str(self.credentials))
        self.start()
        self.pin = (folder / "g/gateway.pin").read_text().strip()

    def command(self, *words):
        return vpn_command("gateway", "--dir", str(self.folder / "g"), *words)

    def verb(self, *words):
        return self.host.run(self.command("ocserv", *words), as_root=self.as_root, check=True).stdout

    def start(self, *options):
        self.log.touch()
        start_bytes = self.log.stat().st_size
        argv = self.command("--kind", "ocserv", *options)
        self.process = self.host.start(argv, as_root=self.as_root, log=self.log)
        wait_for_log(self.log, b"^ready$", self.process, start_bytes=start_bytes, timeout_seconds=30)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(20)

    def used(self):
        knobs = {"ENGINE": "openconnect", "OPENCONNECT_SERVERS": self.endpoint, "GATEWAY_PIN": self.pin}
        return Used(self, {**knobs, "OPENCONNECT_CREDENTIALS_FILE": self.credentials}, "tcp", "udp")


def network(host):
    """What a gateway could leave behind in a host's network."""
    show = [find_program("sh"), "-c", "nft list ruleset; ip link; sysctl net.ipv4.ip_forward"]
    return host.run(show, as_root=True).stdout


@pytest.fixture(params=[False, True], ids=["an ordinary user's", "root's"])
def gateway(request, site, services, tmp_path):
    before, processes = network(site.dmz), set(site.processes())
    gateway = OcservGateway(site.dmz, tmp_path / "o", request.param)
    try:
        yield gateway
        assert gateway.stop() == 0
        wait_until(lambda: set(site.processes()) == processes)
        assert network(site.dmz) == before
    finally:
        gateway.process.kill()
        gateway.process.wait(20)


@pytest.fixture
def pilot(site, gateway, tmp_path):
    pilot = ShellPilot(site, gateway.used(), tmp_path)
    yield pilot
    pilot.kill()


def test_it_carries_everything_where_it_may(gateway, pilot):
    wait_until(lambda: pilot.state()["transport"] == "dtls")
    assert pilot.state()["families"] == ["ipv4", "ipv6"]
    assert pilot.ask(fetch(3_000_000, 20)) == "3000000"
    for address in ECHO:
        asked = f"{address},{ECHO_PORT},1000,3"
        assert pilot.ask(f"{sys.executable} {HERE}/udp_client.py {asked}") == "ok"
        assert "1 received" in pilot.ask(f"ping -n -c 1 -W 15 {address}")
    assert plan.DMZ_OUTSIDE.v4.exploded in pilot.ask(f"curl -4 -s -m 10 http://http.{plan.ZONE}/peer")
    assert plan.DMZ_OUTSIDE.v6.compressed in pilot.ask(f"curl -6 -s -m 10 http://http.{plan.ZONE}/peer")
    code = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)"
    for forbidden in (f"{plan.DMZ_INSIDE.v4} {PORT}", f"{plan.DMZ_OUTSIDE.v4} {PORT}", f"{plan.NODE.v4} 22"):
        assert pilot.ask(f'{sys.executable} -c "{code}" {forbidden}') == "True"
    pilot.end()


def test_connections_outlive_an_ocserv_that_dies_and_a_revoked_user_is_out(site, gateway, pilot, tmp_path):
    flow = HeldFlow(pilot, tmp_path)
    main = next(pid for pid in site.processes() if comm(pid) == "ocserv-main")
    os.kill(main, signal.SIGKILL)
    pilot.wait_for("down")
    pilot.wait_for("up", 60)
    assert flow.end() == "before after"
    gateway.verb("add", "other")
    assert gateway.verb("list").split() == ["pilot", "other"]
    gateway.verb("revoke", "pilot")
    pilot.wait_for("down")
    wait_until(lambda: "does not let us in" in pilot.state()["reason"])
    assert pilot.ask(fetch(1000, 2)) == "0"
    pilot.end()


def comm(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("as_root", [False, True])
def test_a_killed_gateway_leaves_nothing(site, services, tmp_path, as_root):
    before, processes = network(site.dmz), set(site.processes())
    gateway = OcservGateway(site.dmz, tmp_path / "o", as_root)
    gateway.stop(signal.SIGKILL)
    wait_until(lambda: set(site.processes()) == processes)
    wait_until(lambda: network(site.dmz) == before)


def test_a_port_that_is_taken_and_two_ports(site, services, tmp_path):
    with site.dmz.socket(2, 1) as taken:
        taken.bind(("0.0.0.0", 9443))
        taken.listen(1)
        argv = vpn_command("gateway", "--dir", str(tmp_path / "g"), "--kind", "ocserv", "--listen", "0.0.0.0:9443")
        done = site.dmz.run(argv, timeout_seconds=60)
        assert (done.returncode, "cannot listen on 0.0.0.0:9443" in done.stderr) == (80, True), done.stderr
        done = site.dmz.run([*argv, "--listen", "10.1.0.1:9444"], timeout_seconds=60)
        assert (done.returncode, "one port" in done.stderr) == (78, True), done.stderr
