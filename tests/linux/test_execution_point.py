"""The broker as root's service on an execution point, whose jobs go by the host's own network.

The sandbox has one account, so its root is the jobs' account as well; several are in `tests/root`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from shell_pilot import wait_until
from test_jobnet_requests import ASK

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import vpn_command
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services import url

HERE = Path(__file__).parent
FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
METADATA = "169.254.169.254"


class ExecutionPoint:
    """The service on `host`, as its root; `run_job` has a stand-in for root's starter run a job."""

    def __init__(self, host, folder, *knobs):
        self.host, self.folder, self.log = host, folder, folder / "broker.log"
        self.run_dir, self._count = folder / "run", 0
        self.config = folder / "knobs"
        self.config.write_text("".join(f"HTCONDOR_VPN_{knob}\n" for knob in knobs))
        self.starter = folder / "condor_starter"  # by this name, and as root's file, the broker knows it
        shutil.copy(os.path.realpath(sys.executable), self.starter)
        self.start()

    def start(self):
        self.log.touch()
        start_bytes = self.log.stat().st_size
        argv = vpn_command("execution-point", "--dir", str(self.run_dir), "--config", str(self.config))
        self.process = self.host.start(argv, as_root=True, log=self.log)
        wait_for_log(self.log, b"^ready$", self.process, start_bytes=start_bytes)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)

    def start_job(self, *command, ad="", starter=None):
        self._count += 1
        scratch = self.folder / f"dir_{self._count}"
        scratch.mkdir()
        (scratch / ".job.ad").write_text(f'MyType = "Job"\nRequestCpus = 1\n{ad}\n')
        argv = [str(starter or self.starter), "-S", str(HERE / "fake_starter.py"), str(self.run_dir / "libexec"),
                str(scratch), *command]  # fmt: skip
        process = self.host.start(argv, as_root=True, stdout=subprocess.PIPE, env={"PYTHONHOME": sys.base_prefix})
        return process, scratch

    def run_job(self, *command, **more):
        process, _ = self.start_job(*command, **more)
        out, _ = process.communicate(timeout=100)
        assert process.returncode == 0
        return json.loads(out)

    def links(self):
        lines = self.host.run(["ip", "-o", "link"], as_root=True, check=True).stdout.splitlines()
        names = (line.split(": ")[1].split("@")[0] for line in lines)
        return {name for name in names if name.startswith("htv")}

    def tables(self):
        return self.host.run(["nft", "list", "tables"], as_root=True, check=True).stdout

    def forwarding(self):
        names = [f"/proc/sys/net/{name}" for name in FORWARDING]
        return self.host.run(["cat", *names], as_root=True, check=True).stdout.split()


@pytest.fixture
def connected_site(site, services):
    """The DMZ has the world at its other link, and is an execution point: a host that is no router."""
    return site


@pytest.fixture
def point(connected_site, tmp_path):
    host = connected_site.dmz
    host.run(["ip", "route", "add", "default", "via", str(plan.WORLD["cm"].v4)], as_root=True, check=True)
    host.run(["ip", "-6", "route", "add", "default", "via", str(plan.WORLD["cm"].v6)], as_root=True, check=True)
    point = ExecutionPoint(host, tmp_path, "EXECUTION_POINT_DENY = 203.0.113.30")
    yield point
    if point.process.poll() is None:
        point.end()
    for version in ("-4", "-6"):
        host.run(["ip", version, "route", "delete", "default"], as_root=True)


def fetch(size=100000):
    return f"curl -s -m 20 -o /dev/null -w '%{{size_download}}' {url(f'/bytes/{size}')}"


def test_a_job_goes_by_the_hosts_network_and_is_counted(point):
    told = point.run_job("/bin/sh", "-c", f"{fetch()}; curl -4 -s {url('/peer')}")
    assert told["status"] == 0, told["err"]
    assert told["out"].startswith(f"100000{plan.DMZ_OUTSIDE.v4}"), point.log.read_text()
    assert int(told["chirped"]["ChirpNetworkBytesIn"]) > 100_000
    assert wait_until(lambda: point.links() <= {"htvup", "htvdown"})


def test_a_job_pings_and_gains_no_privilege(point):
    told = point.run_job("/bin/sh", "-c", f"ping -c 1 -W 20 {plan.WORLD['http'].v4}; grep NoNewPrivs /proc/self/status")
    assert "1 received" in told["out"], told["err"]
    assert "NoNewPrivs:\t1" in told["out"]


def test_a_job_is_limited(point):
    told = point.run_job("/bin/sh", "-c", fetch(2_000_000), ad="VpnBandwidthMbps = 10")
    assert told["out"] == "2000000", told["err"]
    assert told["took_ms"] > 2e6 * 8 / 10e6 * 1000 * 0.9


def test_the_hook_answers(point):
    told = point.run_job("--hook", "prepare-job", ad="VpnBandwidthMbps = -1")
    assert told["out"].startswith("HookStatusCode = 2\n"), told
    assert point.run_job("--hook", "update-job-info")["status"] == 0


REACH = """
import socket, sys
for word in sys.argv[1:]:
    host, port = word.rsplit('@', 1)
    try:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            print(word, 'reached')
    except OSError as error:
        print(word, error)
"""


def test_a_job_reaches_neither_the_host_nor_what_is_forbidden(point, site):
    http = plan.WORLD["http"]
    forbidden = [f"{plan.DMZ_OUTSIDE.v4}@22", f"{plan.DMZ_INSIDE.v4}@22", f"{plan.DMZ_OUTSIDE.v6}@22",
                 f"{plan.NODE.v4}@22", f"{METADATA}@80", f"{plan.WORLD['iperf'].v4}@80", "198.19.0.0@22"]  # fmt: skip
    with Listening(site.dmz, 22), Listening(site.node, 22):
        told = point.run_job(sys.executable, "-c", REACH, f"{http.v4}@80", f"{http.v6}@80", *forbidden)
    reached = [line.split()[0] for line in told["out"].splitlines() if line.endswith("reached")]
    assert reached == [f"{http.v4}@80", f"{http.v6}@80"], told["out"]


HOLD = """
import socket, sys
held = []
for _ in range(int(sys.argv[2])):
    try:
        held.append(socket.create_connection((sys.argv[1], 80), timeout=20))
    except OSError as error:
        last = error
print(len(held), last)
"""


def test_a_job_cannot_use_up_the_hosts_memory_of_connections(connected_site, tmp_path, point):
    """One that tries is refused, by both versions of IP, and another one that runs beside it is not."""
    point.end()
    point.config.write_text("HTCONDOR_VPN_EXECUTION_POINT_JOB_CONNECTIONS = 30\n")
    point.start()
    holding = f"{sys.executable} -c '{HOLD}' {{}} 40; touch done; read x <go"
    process, scratch = point.start_job("/bin/sh", "-c", holding.format(plan.WORLD["http"].v4))
    os.mkfifo(scratch / "go")
    wait_until((scratch / "done").exists)
    assert point.run_job("/bin/sh", "-c", fetch())["out"] == "100000"
    (scratch / "go").write_text("go\n")
    said = json.loads(process.communicate(timeout=100)[0])["out"]
    assert said == "30 [Errno 111] Connection refused\n", said + point.log.read_text()
    by_v6 = point.run_job(sys.executable, "-c", HOLD, str(plan.WORLD["http"].v6), "40")["out"]
    assert by_v6 == "30 [Errno 111] Connection refused\n"


class Listening:
    """A TCP port of a host, at all its addresses."""

    def __init__(self, host, port):
        self.sock = host.socket(socket.AF_INET6, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("::", port))
        self.sock.listen()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


@pytest.mark.parametrize(
    ("verb", "body"), [("start", "chirp \\n"), ("join", ""), ("prepare", "\\nA = 1"), ("update", "")]
)
def test_only_what_a_starter_of_roots_has_started_is_served(point, verb, body):
    """Root itself and a job are refused, and so is a wrapper that another program has started."""
    argv = [sys.executable, "-c", ASK, verb, str(point.run_dir / "broker.sock"), body]
    before = point.log.stat().st_size
    assert not point.host.run(argv, as_root=True).stdout.startswith("ok ")
    assert not point.run_job(*argv)["out"].startswith("ok ")
    other = shutil.copy(point.starter, point.folder / "another_name")
    assert point.run_job("/bin/true", starter=other)["status"] == 75
    log = point.log.read_bytes()[before:].decode()
    assert log.count("was not started by a condor_starter of root's") == 3, log


def test_a_starter_that_others_may_write_is_none(point):
    other = point.folder / "other"
    other.mkdir()
    starter = shutil.copy(point.starter, other / "condor_starter")
    os.chmod(starter, 0o777)
    told = point.run_job("/bin/true", starter=starter)
    assert told["status"] == 75
    assert "others than root may write" in told["err"]


def _running(point):
    process, scratch = point.start_job("/bin/sh", "-c", f"{fetch()} >first; mv first done; read x <go; {fetch()}")
    os.mkfifo(scratch / "go")
    wait_until((scratch / "done").exists)
    return process, scratch


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_jobs_go_on_when_the_broker_is_killed_or_starts_anew(point, number):
    process, scratch = _running(point)
    before, seen = point.forwarding(), point.log.stat().st_size
    point.process.send_signal(number)
    if number == signal.SIGKILL:
        point.process.wait(60)
        assert "htcondor_vpn_gateway_jobs" in point.tables()
        point.start()
    else:
        wait_for_log(point.log, b"^ready$", point.process, start_bytes=seen)
    wait_until(lambda: "was taken over" in point.log.read_text())
    (scratch / "go").write_text("go\n")
    told = json.loads(process.communicate(timeout=100)[0])
    assert told["out"] == "100000", told["err"]
    assert int(told["chirped"]["ChirpNetworkBytesIn"]) > 200_000
    assert point.forwarding() == before


def test_all_is_taken_back_at_the_end_also_after_a_kill(point):
    process, scratch = _running(point)
    assert point.forwarding() == ["1", "1"]
    point.end(signal.SIGKILL)
    point.start()
    assert point.end() == 0
    assert point.links() == set()
    assert "htcondor_vpn" not in point.tables()
    assert point.forwarding() == ["0", "0"]
    assert not (point.run_dir / "broker.sock").exists()
    point.start()  # the job's network is gone, and so the job does not run on without one
    told = json.loads(process.communicate(timeout=100)[0])
    assert told["status"] == 75
    assert "has been removed" in told["err"]


def test_a_second_broker_is_refused(point):
    argv = vpn_command("execution-point", "--dir", str(point.run_dir))
    done = point.host.run(argv, as_root=True)
    assert done.returncode == 74
    assert "another broker serves" in done.stderr


def test_an_ordinary_user_is_refused(site, tmp_path):
    done = site.node.run(vpn_command("execution-point", "--dir", str(tmp_path / "run")))
    assert done.returncode == 81
    assert "start it as root" in done.stderr


def test_names_are_resolved_where_the_hosts_name_server_is_on_its_loopback(point, tmp_path):
    """As with systemd-resolved: a relay stands on the job's loopback at the same address."""
    stub = tmp_path / "resolv.conf"
    stub.write_text("nameserver 127.0.0.53\n")
    code = (
        "import socket, sys, threading\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.53', 53)); print('up', flush=True)\n"
        "while True:\n"
        "    q, who = s.recvfrom(4096)\n"
        "    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect((sys.argv[1], 53)); u.send(q)\n"
        "    s.sendto(u.recv(4096), who)\n"
    )
    argv = [sys.executable, "-c", code, str(plan.WORLD["dns"].v4)]
    stand_in = point.host.start(argv, as_root=True, stdout=subprocess.PIPE)
    stand_in.stdout.readline()
    point.host.run(["mount", "--bind", str(stub), "/etc/resolv.conf"], as_root=True, check=True)
    try:
        lookup = "import socket; print(socket.getaddrinfo('http.site.example', 80, socket.AF_INET)[0][4][0])"
        told = point.run_job(sys.executable, "-c", lookup)
        assert told["out"].strip() == str(plan.WORLD["http"].v4), told["err"] + point.log.read_text()
    finally:
        point.host.run(["umount", "/etc/resolv.conf"], as_root=True, check=True)
        stand_in.kill()
        stand_in.communicate()
