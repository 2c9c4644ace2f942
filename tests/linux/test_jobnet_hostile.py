"""A job that tries to escape from its network or to cheat, under a real pilot with its tunnel, broker and wrapper."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import hostile_interfaces
import pytest
from hostile_job import ATTEMPTS
from shell_pilot import PATIENT, ShellPilot, fetch, wait_until

from htcondor_vpn.addresses import PILOT_V4, PILOT_V6
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import HTTP_PORT

HERE = Path(__file__).parent
VICTIM_PORT, STARTER_PORT, NODE_PORT = 5399, 5400, 5401
HOARDERS = 12
ABSTRACT = "htcondor-vpn-test"

#: Listens on all addresses and on an abstract UNIX socket, and greets.
GREETER = """
import select, socket, sys
tcp = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
local = socket.socket(socket.AF_UNIX)
local.bind('\\0' + sys.argv[2])
local.listen()
print('greeter listens', flush=True)
while True:
    for sock in select.select([tcp, local], [], [])[0]:
        connection = sock.accept()[0]
        connection.send(b'welcome')
        connection.close()
"""


class JobPilot(ShellPilot):
    """A pilot on the node; `start_job` has a stand-in for a starter run a job in it."""

    def __init__(self, site, gateway, folder, *options, **more):
        super().__init__(site, gateway, folder, *options, knobs=PATIENT, **more)
        self.folder, self._count = folder, 0

    def start_job(self, *command, ad="", stdin=None):
        """Returns the job's scratch folder. What the starter tells of its end comes into `told.json` there."""
        self._count += 1
        scratch = self.folder / f"dir_{self._count}"
        scratch.mkdir()
        (scratch / ".job.ad").write_text(f'MyType = "Job"\nRequestCpus = 1\n{ad}\n')
        argv = [sys.executable, str(HERE / "fake_starter.py"), str(self.run_dir / "libexec"), str(scratch), *command]
        line = f"{shlex.join(argv)} > {scratch}/told.new && mv {scratch}/told.new {scratch}/told.json"
        self.tell(f"({line}) 2>{scratch}/starter.err </dev/null &")
        return scratch

    def told(self, scratch, timeout_seconds=120):
        wait_until((scratch / "told.json").exists, timeout_seconds)
        return json.loads((scratch / "told.json").read_text())

    def run_job(self, *command, ad=""):
        return self.told(self.start_job(*command, ad=ad))


@pytest.fixture(scope="module")
def gateway(site, services, tmp_path_factory):
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def pilot(site, gateway, tmp_path_factory):
    pilot = JobPilot(site, gateway, tmp_path_factory.mktemp("pilot"))
    yield pilot
    pilot.kill()


@pytest.fixture(scope="module")
def greeters(site):
    """Services of the node and of the gateway's host."""
    started = []
    for host in (site.node, site.dmz):
        argv = [sys.executable, "-c", GREETER, str(NODE_PORT), ABSTRACT]
        started.append(host.start(argv, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline()
    yield
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def victim(pilot):
    """Another job of the pilot: its scratch folder."""
    scratch = pilot.start_job(sys.executable, str(HERE / "victim_job.py"), str(VICTIM_PORT), "ready")
    wait_until((scratch / "ready").exists)
    return scratch


@pytest.fixture(scope="module")
def hostile(site, pilot, victim, greeters, tmp_path_factory):
    """What the hostile job tells of each attempt, what left the node meanwhile, and how the job ended."""
    greeter = shlex.join([sys.executable, "-c", GREETER, str(STARTER_PORT), f"{ABSTRACT}-pilot"])
    pilot.tell(f"{greeter} &")
    pilot.wait_for_output(b"^greeter listens$")
    met = json.loads((victim / "ready").read_text())
    starter, _ = (victim / "pids").read_text().split()
    targets = {
        "supervisor": pilot.process.pid, "broker": pilot.child("broker"), "engine": pilot.child("engine"),
        "starter": int(starter), "victim": met["pid"], "victim_v4": met["v4"], "victim_v6": met["v6"],
        "victim_port": VICTIM_PORT, "victim_chirp_port": int((victim / ".chirp.config").read_text().split()[1]),
        "starter_port": STARTER_PORT, "node_port": NODE_PORT, "abstract": ABSTRACT,
        "resolver_v4": str(PILOT_V4), "resolver_v6": str(PILOT_V6), "far_v6": str(plan.WORLD["dns"].v6),
        "node": [str(address) for address in plan.NODE],
        "gateway": [str(address) for address in (*plan.DMZ_INSIDE, *plan.DMZ_OUTSIDE)],
        "run_dir": str(pilot.run_dir), "namespaces": 400,
    }  # fmt: skip
    file = tmp_path_factory.mktemp("targets") / "targets.json"
    file.write_text(json.dumps(targets))
    pcap = tmp_path_factory.mktemp("pcap") / "pcap"
    with Capture(site, [(address, PORT) for address in plan.DMZ_INSIDE], pcap) as capture:
        told = pilot.run_job(sys.executable, hostile_interfaces.__file__, str(file))
    assert told["status"] == 0, told["err"]
    return {"outcomes": json.loads(told["out"]), "foreign": [str(packet) for packet in capture.foreign], "told": told}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_hostile_job_fails(hostile, name):
    succeeded, why = hostile["outcomes"][name]
    assert succeeded is False, why


def test_nothing_of_a_hostile_job_leaves_but_to_the_gateway(hostile):
    assert hostile["foreign"] == []


def test_a_hostile_job_is_counted(hostile):
    assert int(hostile["told"]["chirped"]["ChirpNetworkBytesOut"]) > 0


def test_another_job_hears_nothing_of_a_hostile_one(pilot, victim, hostile):
    """Nor answers to what the hostile job asked in its name."""
    _, wrapper = (victim / "pids").read_text().split()
    os.kill(int(wrapper), signal.SIGTERM)
    told = pilot.told(victim)
    assert json.loads(told["out"]) == []


@pytest.fixture
def greeter_in_the_pilot(pilot):
    """The port of a service on the pilot's loopback, and what it would say."""
    pilot.tell(shlex.join([sys.executable, "-c", GREETER, "5402", f"{ABSTRACT}-other"]) + " & echo greeter is $!")
    pid = int(pilot.wait_for_output(rb"^greeter is ([0-9]+)$")[1])
    wait_until(lambda: b":151A " in Path(f"/proc/{pid}/net/tcp6").read_bytes())
    yield 5402
    os.kill(pid, signal.SIGKILL)


def test_a_forged_chirp_file_leads_to_no_other_service(pilot, greeter_in_the_pilot, tmp_path):
    """The file lies in the job's scratch folder: what a job before it, or one of its input files, can write."""
    port = greeter_in_the_pilot
    (tmp_path / "chirp").write_text(f"127.0.0.1 {port} c00kie\n")
    code = f"import socket; print('it said', socket.create_connection(('127.0.0.1', {port})).recv(100))"
    wrapper = pilot.run_dir / "libexec" / "job-wrapper"
    said = pilot.ask(f"_CONDOR_CHIRP_CONFIG={tmp_path}/chirp {wrapper} {sys.executable} -c {shlex.quote(code)} 2>&1")
    assert "welcome" not in said
    assert "ConnectionReset" in said or "it said b''" in said
    assert f"port {port} of 127.0.0.1 is no starter's" in (pilot.run_dir / "run.log").read_text()


def test_a_job_that_kills_the_broker_stays_limited_and_counted(pilot):
    """It may, having the broker's uid; the next broker takes its network over as it is."""
    before = pilot.child("broker")
    down = f"{fetch(3_000_000)} >down; kill -9 {before}; {fetch(3_000_000)} >>down; cat down"
    told = pilot.run_job("/bin/sh", "-c", down, ad="VpnBandwidthMbps = 20")
    assert told["out"] == "30000003000000", told["err"]
    assert told["took_ms"] > 6e6 * 8 / 20e6 * 1000 * 0.9
    assert int(told["chirped"]["ChirpNetworkBytesIn"]) >= 6_000_000
    assert pilot.child("broker") != before
    assert pilot.run_job("/bin/sh", "-c", fetch(1000))["out"] == "1000"


def test_a_broker_that_a_job_stops_goes_on(pilot):
    """It may, having the broker's uid, and nothing ends with that: jobs would not begin for as long as it stands."""
    broker = pilot.child("broker")
    pilot.start_job("/bin/sh", "-c", f"kill -STOP {broker}")
    wait_for_log(pilot.run_dir / "run.log", b"the broker is stopped or stuck: if it is stopped it goes on now")
    assert pilot.run_job("/bin/sh", "-c", fetch(1000))["out"] == "1000"
    assert pilot.child("broker") == broker


#: Connects to the far side again and again, in many processes, and keeps what it gets: a byte in `hoard` each.
HOARD = f"""
import os, socket
hoard = os.open("hoard", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for _ in range({HOARDERS} - 1):
    if os.fork() == 0:
        break
kept = []
while len(kept) < 40:
    sock = socket.socket()
    sock.settimeout(5)
    try:
        sock.connect(("{plan.WORLD['http'].v4}", {HTTP_PORT}))
    except OSError:
        continue
    kept.append(sock)
    os.write(hoard, b"x")
"""

#: Runs a pilot that has few descriptors.
FEW_DESCRIPTORS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
from htcondor_vpn.cli.main import main
raise SystemExit(main())
"""


@pytest.fixture
def few_ports(site):
    """The node can have 400 connections to the gateway."""
    setting = "/proc/sys/net/ipv4/ip_local_port_range"
    before = site.node.run(["cat", setting]).stdout.strip()
    site.node.run(["sh", "-c", f"echo 40000 40399 > {setting}"], as_root=True)
    yield
    site.node.run(["sh", "-c", f"echo {before} > {setting}"], as_root=True)


@pytest.mark.parametrize(("few", "half"), [("descriptors", 136), ("ports", 200)])
def test_a_job_that_keeps_all_connections_that_it_gets_has_half(site, gateway, tmp_path, request, services, few, half):
    """The others get what they need of the other half, and the tunnel is up."""
    if few == "ports":
        request.getfixturevalue("few_ports")
    program = FEW_DESCRIPTORS if few == "descriptors" else None
    pilot = JobPilot(site, gateway, tmp_path, "--set", "HTCONDOR_VPN_ENGINE_WORKERS=2", program=program)
    try:
        hoard = pilot.start_job(sys.executable, "-c", HOARD) / "hoard"
        wait_until(lambda: hoard.exists() and hoard.stat().st_size >= 0.9 * half, 120)
        assert pilot.ask(fetch(1000)) == "1000"
        assert pilot.run_job("/bin/sh", "-c", fetch(1000))["out"] == "1000"
        assert pilot.state()["state"] == "up"
        assert hoard.stat().st_size <= half
    finally:
        pilot.kill()


def test_connections_are_not_tracked(pilot):
    """So no job can fill a table that others need."""
    assert pilot.run_job("/bin/sh", "-c", fetch(1000))["out"] == "1000"
    assert pilot.ask("cat /proc/sys/net/netfilter/nf_conntrack_count || echo 0").split()[-1] == "0"


def test_a_job_that_kills_the_supervisor_ends_with_everything(site, gateway, tmp_path):
    """It may, having the same uid; nothing goes on without a tunnel, and nothing is left."""
    before = set(site.processes())
    pilot = JobPilot(site, gateway, tmp_path)
    pilot.start_job("/bin/sh", "-c", f"setsid sleep 1000 & kill -9 {pilot.process.pid}; exec sleep 1000")
    assert pilot.process.wait(60) == -signal.SIGKILL
    wait_until(lambda: set(site.processes()) <= before)
    assert not (pilot.run_dir / "libexec").exists()
    pilot.process.stdin.close()
