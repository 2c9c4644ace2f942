"""What a `connect` inside says, and when: the same as it would without a tunnel."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from job_inside import job_argv
from shell_pilot import ShellPilot as Pilot
from shell_pilot import wait_until

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT
from htcondor_vpn.testbed.services.oddities import REFUSED_PORT

HERE = Path(__file__).parent
FAR = [str(address) for address in plan.WORLD["http"]]
NOBODY = "2001:db8:1::99"
SILENT_PORT = 4444
HOLD = "HTCONDOR_VPN_HOLD_CONNECTS="

#: Connects to each ADDRESS,PORT in turn; prints the errno's name, or `connected`, and the seconds that it took.
CLIENT = """
import errno, socket, sys, time
for argument in sys.argv[1:]:
    address, port = argument.split(",")
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    begin = time.monotonic()
    number = sock.connect_ex((address, int(port)))
    print(errno.errorcode.get(number, "connected"), time.monotonic() - begin, flush=True)
    sock.close()
"""


@pytest.fixture
def run(site, gateway):
    def run(*command, options=()):
        done = site.node.run(gateway.run_argv(command, *options), timeout_seconds=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def run_job(run, tmp_path):
    """Runs a command as a job in a network of its own, and returns what it printed."""

    def run_job(*command):
        told = json.loads(run(*job_argv(tmp_path, *command)))
        assert told["status"] == 0, told["err"]
        return told["out"]

    return run_job


def client(*targets):
    return sys.executable, "-c", CLIENT, *(f"{address},{port}" for address, port in targets)


def names(said):
    return [line.split()[0] for line in said.splitlines()]


def test_this_machine_holds_connects(run):
    """What the other tests here rely on: they do not pass by chance."""
    state = json.loads(run("sh", "-c", "cat $HTCONDOR_VPN_RUN_DIR/state.json", options=["--set", HOLD + "on"]))
    assert state["holds_connects"] is True


def expected(address, v4, v6):
    return v6 if ":" in address else v4


@pytest.mark.parametrize("address", FAR)
def test_what_the_far_side_says_is_what_the_pilot_sees(services, run, address):
    said = run(*client((address, HTTP_PORT), (address, REFUSED_PORT), (address, HTTP_PORT)))
    assert names(said) == ["connected", "ECONNREFUSED", "connected"]


@pytest.mark.parametrize("address", FAR)
def test_what_the_far_side_says_is_what_a_job_sees(services, run_job, address):
    """Each of many refusals is told, at once: the kernel's own limit on ICMP messages would tell six."""
    forbidden = expected(address, "10.99.0.1", "fd00::1")
    said = run_job(*client((address, HTTP_PORT), *[(address, REFUSED_PORT)] * 20, *[(forbidden, 22)] * 20))
    assert names(said) == ["connected", *["ECONNREFUSED"] * 20, *[expected(address, "EHOSTUNREACH", "EACCES")] * 20]
    assert sum(float(line.split()[1]) for line in said.splitlines()) < 20


def test_a_host_that_does_not_exist(run):
    assert names(run(*client((NOBODY, HTTP_PORT)))) == ["EHOSTUNREACH"]


@pytest.mark.parametrize(
    "address", [str(plan.DMZ_INSIDE.v4), str(plan.DMZ_INSIDE.v6), "169.254.169.254", "240.0.0.1", "fd00::1"]
)
def test_what_the_gateway_forbids(run, address):
    assert names(run(*client((address, 22)))) == [expected(address, "EHOSTUNREACH", "EACCES")]


def test_the_pilots_own_ports_are_not_asked_of_the_gateway(run):
    assert names(run(*client(("127.0.0.1", 1), ("198.18.0.1", 1), ("::1", 1)))) == ["ECONNREFUSED"] * 3


@pytest.mark.parametrize("address", FAR)
def test_it_is_told_when_the_far_side_has_told_it(services, run, link, address):
    link.shape(delay_ms=50)
    for line in run(*client((address, HTTP_PORT), (address, REFUSED_PORT))).splitlines():
        assert float(line.split()[1]) >= 0.1


def test_hundreds_at_once(services, run):
    code = (
        "import errno, select, socket\n"
        f"targets = [(a, p) for a in {FAR} for p in ({HTTP_PORT}, {REFUSED_PORT})] * 125\n"
        "poll, socks, found = select.poll(), {}, {}\n"
        "for address, port in targets:\n"
        "    sock = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)\n"
        "    sock.setblocking(False); sock.connect_ex((address, port))\n"
        "    socks[sock.fileno()] = sock, port; poll.register(sock, select.POLLOUT)\n"
        "while socks:\n"
        "    for descriptor, _ in poll.poll():\n"
        "        sock, port = socks.pop(descriptor); poll.unregister(descriptor)\n"
        "        key = port, errno.errorcode.get(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 'connected')\n"
        "        found[key] = found.get(key, 0) + 1\n"
        "print(sorted(found.items()))\n"
    )
    said = run(sys.executable, "-c", code)
    assert said == f"{[((REFUSED_PORT, 'ECONNREFUSED'), 250), ((HTTP_PORT, 'connected'), 250)]}\n"


@pytest.fixture
def silence(site):
    """Drops what comes to a port of the world's HTTP server until it is called, or the test ends."""
    nft = find_program("nft", "nftables")

    def end():
        site.world.run([nft, "delete table inet silence"], as_root=True)

    chain = f"type filter hook input priority 0; tcp dport {SILENT_PORT} counter drop;"
    rules = f"table inet silence {{ chain in {{ {chain} }}; }}"
    site.world.run([nft, "-f", "-"], stdin=rules, as_root=True, check=True)
    yield end
    end()


@pytest.fixture
def pilot(site, gateway, tmp_path):
    pilot = Pilot(site, gateway, tmp_path)
    yield pilot
    pilot.kill()


def test_a_syn_that_is_sent_again_opens_no_second_flow(gateway, pilot, silence):
    """To a far side that is silent for longer than it takes the application's kernel to send the second one."""
    before = gateway.log.stat().st_size
    code = f"import socket; socket.create_connection(('{FAR[0]}', {SILENT_PORT}), 2.5)"
    assert "timed out" in pilot.ask(f'{sys.executable} -c "{code}" 2>&1')
    silence()
    pilot.end()
    line = rf"to={FAR[0]}:{SILENT_PORT} ".encode()
    wait_for_log(gateway.log, line, gateway.process, start_bytes=before)
    assert gateway.log.read_bytes()[before:].count(line) == 1


def test_a_connect_that_is_held_outlives_the_engine(services, site, pilot, tmp_path, silence):
    """It fails in no state between: its next SYN is held by the next engine."""
    listener = site.world.start(
        [sys.executable, "-c", f"import socket; s = socket.create_server(('{FAR[0]}', {SILENT_PORT})); "
         "print('ready', flush=True); c, _ = s.accept(); c.sendall(b'hello'); c.recv(1)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert listener.stdout.readline() == b"ready\n"
    code = f"import socket; s = socket.create_connection(('{FAR[0]}', {SILENT_PORT}), 60); print(s.recv(5).decode())\n"
    (tmp_path / "flow.py").write_text(code)
    engine = pilot.child("engine")
    pilot.process.stdin.write(f"{sys.executable} {tmp_path / 'flow.py'}\n".encode())
    pilot.process.stdin.flush()
    dropped = [find_program("nft", "nftables"), "list table inet silence"]
    wait_until(lambda: "packets 0 " not in site.world.run(dropped, as_root=True, check=True).stdout)
    os.kill(engine, signal.SIGKILL)
    silence()
    wait_for_log(pilot.log, b"^hello$", pilot.process, timeout_seconds=60)
    listener.wait(60)
    listener.stdout.close()


def test_without_holding_a_refusal_is_a_reset(services, run):
    code = (
        "import socket\n"
        f"s = socket.create_connection(('{FAR[0]}', {REFUSED_PORT}), 60)\n"
        "try: s.recv(1)\n"
        "except OSError as error: print(error.errno)\n"
    )
    assert run(sys.executable, "-c", code, options=["--set", HOLD + "off"]) == f"{errno.ECONNRESET:d}\n"


def test_connects_wait_where_the_engine_has_no_descriptors_left(site, services, gateway):
    """It has some for 30 flows or so, and twice as many are wanted: the others go on as those end."""
    code = (
        "import socket, threading\n"
        "found, most = [], threading.Barrier(20)\n"
        "def flow(n):\n"
        f"    with socket.create_connection(('{FAR[0]}', {HTTP_PORT}), 60):\n"
        "        found.append(n)\n"
        "        if n < 20: most.wait(60)\n"
        "threads = [threading.Thread(target=flow, args=(n,)) for n in range(80)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(len(found))\n"
    )
    argv = gateway.run_argv([sys.executable, "-c", code])
    done = site.node.run(["sh", "-c", 'ulimit -n 96; exec "$@"', "sh", *argv], timeout_seconds=90)
    assert done.stdout == "80\n", done.stderr
