"""`ping` inside: answered by the far side alone, as what it is told by the gateway says."""

import json
import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine_site import use
from job_inside import job_argv
from test_run_connects import NOBODY

from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture

HERE = Path(__file__).parent
FAR = [str(address) for address in plan.WORLD["http"]]


@pytest.fixture
def run(site, gateway):
    """Runs a command behind the tunnel, and returns its exit code and what it printed."""

    def run(*command, by=gateway):
        done = site.node.run(by.run_argv(command), timeout_seconds=90)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def run_job(run, tmp_path):
    """The same as a job in a network of its own."""

    def run_job(*command):
        code, said = run(*job_argv(tmp_path, *command))
        assert code == 0, said
        told = json.loads(said)
        return told["status"], told["out"] + told["err"]

    return run_job


def ping(address, *options):
    return find_program("ping", "iputils-ping"), "-n", *(options or ("-c", "3", "-i", "0.2")), "-W", "15", address


@pytest.mark.parametrize("address", FAR)
def test_the_pilot_pings(services, run, address):
    code, said = run(*ping(address))
    assert code == 0, said
    assert "3 packets transmitted, 3 received" in said
    assert len(re.findall(rf"64 bytes from {address}: icmp_seq=[123] ", said)) == 3


@pytest.mark.parametrize("address", FAR)
def test_a_job_pings(services, run_job, address):
    code, said = run_job(*ping(address))
    assert code == 0, said
    assert "3 packets transmitted, 3 received" in said


@pytest.mark.parametrize("address", FAR)
@pytest.mark.parametrize("size", [0, 1, 1473, 5000, 60000])
def test_payload_comes_back_as_it_was_sent(services, run, address, size):
    """ping compares it itself, and says `wrong data byte`; it prints no time for less than 16 bytes."""
    code, said = run(*ping(address, "-c", "1", "-s", str(size), "-p", "5a"))
    assert code == 0, said
    assert f"{size + 8} bytes from {address}" in said
    assert "wrong" not in said


def test_a_large_one_from_a_job(services, run_job):
    code, said = run_job(*ping(FAR[0], "-c", "1", "-s", "20000"))
    assert code == 0, said
    assert "20008 bytes from" in said


@pytest.mark.parametrize("address", FAR)
def test_the_time_is_that_of_the_whole_way(services, run, link, address):
    link.shape(delay_ms=50)
    _, said = run(*ping(address))
    times = [float(time) for time in re.findall(r"time=([0-9.]+) ms", said)]
    assert len(times) == 3, said
    assert min(times) >= 100


def test_nobody_answers_for_a_host_that_does_not_exist(run):
    code, said = run(*ping(NOBODY, "-c", "1"))
    assert code == 1
    assert "Address unreachable" in said
    assert "1 packets transmitted, 0 received" in said


@pytest.mark.parametrize("address", [str(plan.DMZ_INSIDE.v4), str(plan.DMZ_INSIDE.v6), "169.254.169.254", "fd00::1"])
def test_what_the_gateway_forbids(run, address):
    code, said = run(*ping(address, "-c", "1"))
    assert code == 1
    assert "Administratively prohibited" in said if ":" in address else "Packet filtered" in said


def test_the_pilot_itself_and_its_loopback(run):
    for address in ("127.0.0.1", "198.18.0.1", "::1"):
        code, said = run(*ping(address, "-c", "1"))
        assert code == 0, said


def test_a_silent_host(site, run, services):
    """It gets the request and does not answer, so that nothing is told either."""
    for value in "10":
        site.world.run(["sysctl", "-qw", f"net.ipv4.icmp_echo_ignore_all={value}"], as_root=True, check=True)
        if value == "1":
            begin = time.monotonic()
            code, said = run(find_program("ping"), "-n", "-c", "1", "-W", "1", FAR[0])
            assert code == 1
            assert "1 packets transmitted, 0 received, 100% packet loss" in said
            assert time.monotonic() - begin < 30


def test_a_carrier_that_cannot(site, services, run, tmp_path):
    with ExitStack() as exits:
        used = use("proxy", site, tmp_path, exits)
        code, said = run(*ping(FAR[0], "-c", "1"), by=used)
    assert code == 1
    assert "Packet filtered" in said


def test_nothing_of_it_leaves_the_node_but_to_the_gateway(site, services, gateway, run):
    with Capture(site, allowed=[(plan.DMZ_INSIDE.v4, 8443)]) as capture:
        run("sh", "-c", " ; ".join(" ".join(ping(address, "-c", "1")) for address in FAR))
    assert [str(packet) for packet in capture.foreign] == []


def test_a_flood_by_a_job_is_bounded_at_the_gateway(services, gateway, run):
    """It has 100 at once, and then 50 a second; and the others of this gateway are none the worse."""
    before = gateway.log.stat().st_size
    code = (
        "import socket, struct\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)\n"
        f"sock.connect(('{FAR[0]}', 0))\n"
        "for n in range(2000): sock.send(struct.pack('!BBHHH', 8, 0, 0, 0, n))\n"
        "sock.settimeout(15); print(sock.recv(100)[0])\n"
    )
    begin = time.monotonic()
    assert run(sys.executable, "-c", code) == (0, "0\n")
    seconds = time.monotonic() - begin
    assert gateway.log.read_bytes()[before:].count(b"outcome=answered") <= 100 + 50 * seconds
