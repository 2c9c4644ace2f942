"""UDP through the tunnel: from the pilot and from a job's network, to both families, and what it must not do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from job_inside import job_argv

from htcondor_vpn.addresses import PILOT_V6
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services.oddities import ECHO_PORT, REFUSED_PORT

HERE = Path(__file__).parent
ECHO_V4, ECHO_V6 = str(plan.WORLD["http"].v4), str(plan.WORLD["http"].v6)
SIZES = (1, 2, 512, 1400, 1473, 3972, 3973, 9000, 60000)


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
        limits = ["--set", "HTCONDOR_VPN_JOB_UP_MBPS=500", "--set", "HTCONDOR_VPN_JOB_DOWN_MBPS=500"]
        told = json.loads(run(*job_argv(tmp_path, *command), options=limits))
        assert told["status"] == 0, told["err"]
        return told["out"]

    return run_job


def client(*asked):
    return sys.executable, str(HERE / "udp_client.py"), *asked


def python(code):
    return sys.executable, "-c", code


@pytest.mark.parametrize("address", [ECHO_V4, ECHO_V6])
def test_datagrams_of_all_sizes_from_the_pilot(services, run, address):
    asked = [f"{address},{ECHO_PORT},{size},3" for size in SIZES]
    assert run(*client(*asked)).split() == ["ok"] * len(SIZES)


@pytest.mark.parametrize("address", [ECHO_V4, ECHO_V6])
def test_datagrams_of_all_sizes_from_a_job(services, run_job, address):
    asked = [f"{address},{ECHO_PORT},{size},3" for size in SIZES]
    assert run_job(*client(*asked)).split() == ["ok"] * len(SIZES)


@pytest.fixture
def more_echoes(site, services):
    """Addresses of three more hosts that echo, in both families."""
    places = [str(address) for name in ("cm", "iperf", "dns") for address in plan.WORLD[name]]
    argv = [sys.executable, "-m", "htcondor_vpn.testbed.services.oddities", *places]
    server = site.world.start(argv, stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"ready\n"
    yield places
    server.kill()
    server.wait()
    server.stdout.close()


def test_one_client_to_several_destinations_in_turns(run, more_echoes):
    places = [ECHO_V4, ECHO_V6, *more_echoes]
    asked = [f"{place},{ECHO_PORT},100,1" for place in places] * 3
    assert run(*client(*asked)).split() == ["ok"] * len(asked)


def test_several_clients_to_one_destination(services, run):
    one = " ".join(client(f"{ECHO_V4},{ECHO_PORT},1000,200"))
    assert run("sh", "-c", f"{one} & {one} & {one} & {one} & wait").split() == ["ok"] * 4


def test_a_job_cannot_have_answers_sent_to_another_network(services, gateway, run, tmp_path):
    """Its socket says to be the pilot's, which IPv6 lets anyone do; the pilot itself listens there."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / ".job.ad").write_text('MyType = "Job"\n')
    before = gateway.log.stat().st_size
    job = (
        "import socket\n"
        "honest, forged = (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2))\n"
        f"honest.sendto(b'x', ('{ECHO_V6}', {ECHO_PORT})); honest.settimeout(20); honest.recv(1)\n"
        "forged.setsockopt(socket.IPPROTO_IPV6, 78, 1)\n"  # IPV6_FREEBIND, linux/in6.h
        f"forged.bind(('{PILOT_V6}', 5555)); forged.sendto(b'forged', ('{ECHO_V6}', {ECHO_PORT}))\n"
    )
    code = (
        "import os, socket, subprocess, sys\n"
        "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.settimeout(2)\n"
        f"s.bind(('{PILOT_V6}', 5555))\n"
        f"starter = [sys.executable, '{HERE}/fake_starter.py', os.environ['HTCONDOR_VPN_RUN_DIR'] + '/libexec']\n"
        f"subprocess.run([*starter, '{scratch}', sys.executable, '-c', {job!r}], check=True)\n"
        "try: print(s.recvfrom(100))\n"
        "except socket.timeout: print('nothing')\n"
    )
    assert run(*python(code)).splitlines()[-1] == "nothing"
    wait_for_log(gateway.log, rb"to=\[2001:db8:1::20\]:7/udp .* bytes_up=1 ", gateway.process, start_bytes=before)


_ASK = (
    "import socket, sys\n"
    "family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
    "s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(20)\n"
    "try: s.connect((sys.argv[1], int(sys.argv[2]))); s.send(b'x'); s.recv(1)\n"
    "except OSError as error: print(type(error).__name__, error.errno or '')\n"
)


@pytest.mark.parametrize("address", [ECHO_V4, ECHO_V6])
def test_a_port_where_nobody_listens_refuses(services, run, run_job, address):
    assert run(*python(_ASK), address, str(REFUSED_PORT)).split()[0] == "ConnectionRefusedError"
    assert run_job(*python(_ASK), address, str(REFUSED_PORT)).split()[0] == "ConnectionRefusedError"


@pytest.mark.parametrize(
    "address", [str(plan.DMZ_INSIDE.v4), str(plan.DMZ_INSIDE.v6), "169.254.169.254", "240.0.0.1", "fe80::1:1"]
)
def test_what_the_policy_forbids_is_rejected(services, run, address):
    name, *number = run(*python(_ASK), address, "53").split()
    assert name != "TimeoutError", name


def test_multicast_and_broadcast_go_nowhere(services, gateway, run):
    before = gateway.log.stat().st_size
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
        "for place in ('224.0.0.251', '255.255.255.255'):\n"
        "    try: s.sendto(b'x', (place, 5353))\n"
        "    except OSError: pass\n"
    )
    run(*python(code))
    assert ":5353/udp" not in gateway.log.read_text()[before:]


def test_a_question_to_a_name_server_outside(services, run):
    code = (
        "import dns.message, dns.query\n"
        f"query = dns.message.make_query('http.{plan.ZONE}', 'A')\n"
        f"for where in ('{plan.WORLD['dns'].v4}', '{plan.WORLD['dns'].v6}', '198.18.0.1'):\n"
        "    print(dns.query.udp(query, where, timeout=20).answer[0][0].address)\n"
    )
    assert run(*python(code)).split() == [ECHO_V4] * 3


def test_the_pilots_own_datagrams_stay_inside(services, gateway, run):
    before = gateway.log.stat().st_size
    code = (
        "import socket\n"
        "for host in ('127.0.0.1', '198.18.0.1', '::1'):\n"
        "    family = socket.AF_INET6 if ':' in host else socket.AF_INET\n"
        "    server, client = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))\n"
        "    server.bind((host, 0)); client.sendto(b'x', server.getsockname()[:2]); server.settimeout(20)\n"
        "    print(server.recvfrom(1)[0].decode())\n"
    )
    assert run(*python(code)).split() == ["x"] * 3
    for host in ("127.0.0.1", "198.18.0.1", "[::1]"):
        assert f"to={host}:" not in gateway.log.read_text()[before:]


def test_what_is_sent_last_still_arrives(services, gateway, run):
    before = gateway.log.stat().st_size
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range(10): s.sendto(bytes(1000), ('{ECHO_V4}', {ECHO_PORT}))\n"
    )
    run(*python(code))
    wait_for_log(gateway.log, rb"to=203.0.113.20:7/udp .* bytes_up=10000 ", gateway.process, start_bytes=before)


def test_payload_is_counted(services, run):
    code = (
        "import json, os, subprocess, sys, time\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "deadline = time.monotonic() + 60\n"
        "while True:\n"
        "    state = json.load(open(os.environ['HTCONDOR_VPN_RUN_DIR'] + '/state.json'))\n"
        "    if state['bytes_in'] >= 50000 or time.monotonic() > deadline: break\n"
        "    time.sleep(0.1)\n"
        "print(state['bytes_in'], state['bytes_out'], state['flows'])\n"
    )
    rates = ["--set", "HTCONDOR_VPN_UP_MBPS=1000", "--set", "HTCONDOR_VPN_DOWN_MBPS=1000"]
    said = run(*python(code), *client(f"{ECHO_V4},{ECHO_PORT},1000,50"),
               options=["--set", "HTCONDOR_VPN_PROBE_INTERVAL=0.5", *rates])  # fmt: skip
    assert said.splitlines() == ["ok", "50000 50000 1"]


def test_many_destinations_make_room_for_the_latest(services, run):
    """A scan of more ports than there may be associations, and then an echo on the same socket's address."""
    code = (
        "import json, os, socket, subprocess, sys, time\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for port in range(20000, 20600): s.sendto(b'x', ('{ECHO_V4}', port))\n"
        "deadline = time.monotonic() + 60\n"
        "while True:\n"
        "    flows = json.load(open(os.environ['HTCONDOR_VPN_RUN_DIR'] + '/state.json'))['flows']\n"
        "    if flows >= 200 or time.monotonic() > deadline: break\n"
        "    time.sleep(0.1)\n"
        "print(flows, flush=True)\n"
        "time.sleep(1)\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
    )
    said = run(*python(code), *client(f"{ECHO_V4},{ECHO_PORT},1000,5"),
               options=["--set", "HTCONDOR_VPN_PROBE_INTERVAL=0.5"])  # fmt: skip
    flows, echoed = said.split()
    assert 200 <= int(flows) <= 256
    assert echoed == "ok"


def test_a_gateway_that_is_restarted(site, services, gateway):
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n"
        "def echo():\n"
        f"    s.sendto(b'x', ('{ECHO_V4}', {ECHO_PORT})); return s.recv(10)\n"
        "print(echo().decode(), flush=True); sys.stdin.readline()\n"
        "s.settimeout(0.5)\n"
        "for _ in range(120):\n"
        "    try: print(echo().decode()); break\n"
        "    except OSError: pass\n"
    )
    options = ["--set", "HTCONDOR_VPN_PROBE_INTERVAL=0.3", "--set", "HTCONDOR_VPN_PROBE_TIMEOUT=5"]
    argv = gateway.run_argv(python(code), *options)
    process = site.node.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"x\n"
    gateway.stop()
    gateway.start()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stdout.readline() == b"x\n"
    assert process.wait(60) == 0
    process.stdout.close()
