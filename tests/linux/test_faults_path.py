"""What happens to the path between node and gateway: the tunnel goes on, or says that it cannot.

In each test a capture on the node's link sees to it that nothing else leaves.
"""

import json
import os
import signal
import sys
import time

import pytest
from shell_pilot import descendants, fetch, pause, upload, wait_until

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import payload, url
from htcondor_vpn.testbed.services.oddities import ECHO_PORT
from htcondor_vpn.testbed.site import SITE_LINK

HTTP = str(plan.WORLD["http"].v4)
UDP = f"{sys.executable} {os.path.dirname(__file__)}/udp_client.py {HTTP},{ECHO_PORT},1000,3"

#: `run` with a patience of seconds for flows that nobody answers.
IMPATIENT = (
    "import sys; from htcondor_vpn.wire import silence; silence.FLOW_SECONDS, silence._LOOK_SECONDS = 3.0, 0.5\n"
    "from htcondor_vpn.cli.main import main; sys.exit(main())"
)

#: A flow that sends a line each time it is told to on its FIFO, and says what became of it.
TALKER = f"""
import socket, sys
flow = socket.create_connection(({HTTP!r}, {ECHO_PORT}), 60)
print("opened\\n", end="", flush=True)
try:
    for line in open(sys.argv[1]):
        flow.sendall(b"x" * 1000)
        print("sent\\n", end="", flush=True)
    flow.shutdown(socket.SHUT_WR)
    count = 0
    while got := len(flow.recv(65536)):
        count += got
    print("echoed", count, flush=True)
except OSError:
    print("broken\\n", end="", flush=True)
"""


#: An association, through which an echo is asked for until it comes, each time that it is told to.
UDP_TALKER = f"""
import socket, sys
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
way.connect(({HTTP!r}, {ECHO_PORT}))
way.settimeout(0.5)
def echoed():
    try:
        way.send(b"x")
        return way.recv(10)
    except OSError:
        return b""
print("opened\\n", end="", flush=True)
for line in open(sys.argv[1]):
    while not echoed(): pass
    print("answered\\n", end="", flush=True)
"""


@pytest.fixture
def gateway(sealed, tmp_path):
    with SiteGateway(sealed.dmz, tmp_path) as gateway:
        yield gateway


@pytest.fixture
def talk(tmp_path):
    """Starts a flow in a pilot; returns what has it send, by a line, and end, by its own end."""
    ends = []

    def talk(pilot, script=TALKER):
        program, fifo = (tmp_path / f"talker{len(ends)}.{what}" for what in ("py", "fifo"))
        program.write_text(script)
        os.mkfifo(fifo)
        start = pilot.log.stat().st_size
        pilot.tell(f"{sys.executable} {program} {fifo} &")
        ends.append(os.fdopen(os.open(fifo, os.O_RDWR), "w"))  # which waits for nobody
        wait_for_log(pilot.log, b"^opened$", pilot.process, start_bytes=start)
        return ends[-1]

    yield talk
    for end in ends:
        end.close()


def signal_all(processes, number):
    for pid in processes:
        os.kill(pid, number)


def say(flow):
    flow.write("\n")
    flow.flush()


def test_half_a_minute_without_a_link(sealed, services, gateway, link, start_pilot, tmp_path, talk):
    """Flows wait and go on, both ways, those that were idle too; new connections fail meanwhile, soon."""
    link.shape(rate_mbps=300)
    pilot = start_pilot(sealed, gateway, tmp_path)
    flow = talk(pilot)
    size = 80_000_000
    (tmp_path / "upload").write_bytes(b"".join(payload.chunks(size)))
    pilot.tell(f"curl -s {url(f'/bytes/{size}')} | sha256sum >{tmp_path}/downloaded &")
    pilot.tell(f"curl -s -T {tmp_path}/upload {url('/upload')} >{tmp_path}/uploaded &")
    wait_until(lambda: pilot.state()["bytes_in"] > size / 10 and pilot.state()["bytes_out"] > size / 10)
    assert pilot.ask(UDP) == "ok"
    link.down()
    begin = time.monotonic()
    pilot.wait_for("down")
    assert pilot.ask(f"curl -s -m 20 http://{HTTP}/; echo $?") in ("7", "56")
    say(flow)
    pause(begin + 30 - time.monotonic())
    link.up()
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    assert pilot.ask(UDP) == "ok"
    flow.close()
    pilot.wait_for_output(b"^echoed 1000$", timeout_seconds=60)
    pilot.ask("wait", timeout_seconds=120)
    assert (tmp_path / "downloaded").read_text().split()[0] == payload.sha256(size)
    assert json.loads((tmp_path / "uploaded").read_text()) == {"bytes": size, "sha256": payload.sha256(size)}
    pilot.end()


def test_a_gateway_that_freezes(sealed, services, gateway, start_pilot, tmp_path, talk):
    """Its kernel acknowledges everything, and nobody is there."""
    pilot = start_pilot(sealed, gateway, tmp_path)
    flow = talk(pilot)
    processes = [gateway.process.pid, *descendants(gateway.process.pid)]
    signal_all(processes, signal.SIGSTOP)
    pilot.wait_for("down")
    say(flow)
    pilot.wait_for_output(b"^sent$")
    signal_all(processes, signal.SIGCONT)
    pilot.wait_for("up")
    assert pilot.ask(fetch()) == "1000"
    flow.close()
    pilot.wait_for_output(b"^echoed 1000$")
    pilot.end()


def test_udp_is_blocked_on_the_nodes_link(sealed, services, gateway, start_pilot, tmp_path):
    """Ours travels in TCP."""
    pilot = start_pilot(sealed, gateway, tmp_path)
    assert pilot.ask(UDP) == "ok"
    chain = "add chain inet no_udp in { type filter hook input priority 0 ; }"
    rules = f"add table inet no_udp\n{chain}\nadd rule inet no_udp in iifname {SITE_LINK} meta l4proto udp drop\n"
    sealed.dmz.run(["nft", "-f", "-"], stdin=rules, as_root=True, check=True)
    try:
        assert pilot.ask(UDP) == "ok"
        assert pilot.ask(f"getent ahostsv4 http.{plan.ZONE} | head -n 1").startswith(HTTP)
        assert pilot.state()["state"] == "up"
    finally:
        sealed.dmz.run(["nft", "delete", "table", "inet", "no_udp"], as_root=True, check=True)
    pilot.end()


@pytest.fixture
def change_address(sealed):
    """Gives the node another address instead of its own, until the end."""
    other, own = f"{plan.NODE.v4 + 7}/24", f"{plan.NODE.v4}/24"

    def change(there=True):
        for action, address in (("delete", own if there else other), ("add", other if there else own)):
            sealed.node.run(["ip", "address", action, address, "dev", SITE_LINK], as_root=True, check=True)

    yield change
    change(False)


def test_the_node_gets_another_address(sealed, services, gateway, start_pilot, tmp_path, talk, change_address):
    """The flows of the old one cannot go on, and end; new ones go out from the new one."""
    pilot = start_pilot(sealed, gateway, tmp_path, program=IMPATIENT)
    flow, way = talk(pilot), talk(pilot, UDP_TALKER)
    say(way)
    pilot.wait_for_output(b"^answered$")
    since = pilot.state()["since"]
    change_address()
    say(flow)
    wait_until(lambda: pilot.state()["since"] > since)
    say(way)
    pilot.wait_for_return(since)
    assert pilot.ask(fetch()) == "1000"
    pilot.wait_for_output(b"^answered\n(.*\n)*answered$", timeout_seconds=60)
    flow.close()
    pilot.wait_for_output(b"^broken$")
    pilot.end()


@pytest.fixture
def forget_paths(site):
    """What the hosts have learned of their path is forgotten afterwards."""
    yield
    for host in (site.node, site.dmz):
        for family in ("-4", "-6"):
            host.run(["ip", family, "route", "flush", "cache"], as_root=True, check=True)


MTU = 1280


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_path_that_tells_of_smaller_packets(leaky_site, services, link, forget_paths, start_pilot, tmp_path, family):
    """The kernels see to it, in the middle of a transfer. The answers of the router are on the node's link, no more."""
    size = 8_000_000
    with SiteGateway(leaky_site.dmz, tmp_path) as gateway:
        with Capture(leaky_site, [(address, PORT) for address in plan.DMZ_INSIDE]) as capture:
            pilot = start_pilot(leaky_site, gateway, tmp_path, "--gateway", gateway.endpoints[family == "v6"])
            pilot.tell(f"curl -s {url(f'/bytes/{size}')} --limit-rate 8M | sha256sum >{tmp_path}/downloaded &")
            wait_until(lambda: pilot.state()["bytes_in"] > size / 10)
            link.shape(mtu=MTU)
            assert pilot.ask(fetch(1_000_000)) == "1000000"
            pilot.ask("wait", timeout_seconds=60)
            assert (tmp_path / "downloaded").read_text().split()[0] == payload.sha256(size)
            assert pilot.ask(upload(1_000_000)) == "1000000"
            assert "is down" not in (pilot.run_dir / "run.log").read_text()
            pilot.end()
        hosts = f"{getattr(plan.DMZ_INSIDE, family)} > {getattr(plan.NODE, family)}"
        told = f"IPv4 {hosts} protocol 1" if family == "v4" else f"IPv6 {hosts} next 58"
        assert {str(packet) for packet in capture.foreign} == {told}


def test_a_path_that_swallows_large_packets(sealed, services, gateway, link, forget_paths, start_pilot, tmp_path):
    """A firewall drops what its router says of them. The pilot says so, and then sends smaller ones."""
    pilot = start_pilot(sealed, gateway, tmp_path)
    assert pilot.ask(fetch(1_000_000)) == "1000000"
    since = pilot.state()["since"]
    link.shape(mtu=MTU, mtu_told=False)
    pilot.wait_for_return(since)
    assert pilot.ask(fetch(1_000_000)) == "1000000"
    assert pilot.ask(upload(1_000_000)) == "1000000"
    assert b"large packets to 10.1.0.1:8443 vanish" in (pilot.run_dir / "run.log").read_bytes()
    pilot.end()
