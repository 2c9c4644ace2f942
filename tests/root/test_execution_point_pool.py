"""A pool whose daemons root runs, on a machine with the service of an execution point: jobs of two accounts at once.

Like `test_execution_point_accounts`, for the real root in namespaces of its own, with all files in a tmpfs.
"""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys

import pytest
from test_execution_point_accounts import ACCOUNTS, APART, CHECKOUT, HOST, obstacle

from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.testbed import condor_prefix

#: Two slots for two jobs, whose kind is what differs.
SLOTS = {
    "static": ["NUM_SLOTS_TYPE_1 = 2", "SLOT_TYPE_1 = 50%", "SLOT_TYPE_1_PARTITIONABLE = false"],
    "partitionable": ["NUM_SLOTS_TYPE_1 = 1", "SLOT_TYPE_1 = 100%", "SLOT_TYPE_1_PARTITIONABLE = true"],
}

#: Runs on that host: the service, the pool, the jobs; prints one JSON object.
TRIAL = """
import json, os, shutil, subprocess, sys
from pathlib import Path
checkout, accounts, prefix, slots = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
sys.path.insert(0, checkout)
from htcondor_vpn.linux.programs import ProgramFailed, run_program
from htcondor_vpn.testbed.condor_folder import CondorFolder, wait_until
CONDOR = 60000
names = {CONDOR: "condor", accounts[0]: "alice", accounts[1]: "bob"}
for path, line in (("passwd", "{1}:x:{0}:{0}::/:/bin/sh"), ("group", "{1}:x:{0}:")):
    lines = [Path("/etc", path).read_text().rstrip(), *(line.format(*each) for each in names.items())]
    Path(path).write_text("\\n".join(lines) + "\\n")
    run_program(["mount", "--bind", path, f"/etc/{path}"])
starter = shutil.copy(prefix / "usr/sbin/condor_starter", "/run/host/condor_starter")  # root's, whose cache it may be
folder = CondorFolder(prefix, Path("/run/host/condor"))
folder.write_secret("passwords.d/POOL", "of this test")
folder.write_config("COLLECTOR NEGOTIATOR SCHEDD STARTD", "127.0.0.1:9618", "\\n".join([
    "NETWORK_INTERFACE = 127.0.0.1", "SHARED_PORT_PORT = 9618", "UID_DOMAIN = testbed",
    f"CONDOR_IDS = {CONDOR}.{CONDOR}", f"STARTER = {starter}",
    "ALLOW_READ = *", "ALLOW_WRITE = *", "ALLOW_DAEMON = *", "ALLOW_NEGOTIATOR = *",
    "ALLOW_ADVERTISE_STARTD = *", "ALLOW_ADVERTISE_MASTER = *", "ALLOW_ADVERTISE_SCHEDD = *",
    "SEC_DEFAULT_AUTHENTICATION_METHODS = FS", "SEC_CLIENT_AUTHENTICATION_METHODS = FS",
    "NEGOTIATOR_INTERVAL = 2", "NEGOTIATOR_MIN_INTERVAL = 1", "NEGOTIATOR_CYCLE_DELAY = 1", "SCHEDD_MIN_INTERVAL = 1",
    "SCHEDD_INTERVAL = 2", "NUM_CPUS = 2", "MEMORY = 1024", "START = true", "RunBenchmarks = false",
    "STARTD_DETECT_GPUS = false", "ENABLE_KERNEL_TUNING = false", "BASE_CGROUP =", "UPDATE_OFFSET = 0",
    "KILLING_TIMEOUT = 5", *slots,
]))
folder.add_shipped("50-htcondor-vpn-execution-point.conf")
for name in ("log", "run", "lock", "spool", "execute"):
    shutil.chown(folder.folder / name, CONDOR, CONDOR)
    (folder.folder / name).chmod(0o755)
argv = [sys.executable, "-m", "htcondor_vpn.cli.main", "execution-point", "--dir", "/run/htcondor-vpn"]
service = subprocess.Popen(argv, cwd=checkout, stdout=subprocess.PIPE, stderr=open("broker.log", "w"), text=True)
assert service.stdout.readline() == "ready\\n", open("broker.log").read()
master = subprocess.Popen(folder.command("condor_master", "-f"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
def tool(*words, uid=0):
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
    return run_program([*become, *folder.command(*words)])
def begun():
    try:
        return all(tool("condor_status", *kind, "-af", "Name").strip() for kind in (["-schedd"], [])) or None
    except ProgramFailed:
        return None
job = ("id -u; grep -c 'CapEff:.0000000000000000' /proc/self/status; readlink /proc/self/ns/net;"
       "curl -s -m 20 http://198.51.100.1:8080/file; curl -s -m 5 http://192.0.2.2:22/ || echo refused;"
       "touch {here}; i=0; while [ ! -e {other} -a $i -lt 900 ]; do sleep 0.1; i=$((i+1)); done; [ -e {other} ]")
try:
    wait_until("the pool", 120, begun)
    os.mkdir("together", 0o777)
    os.chmod("together", 0o777)
    clusters, told = {}, {"host": os.readlink("/proc/self/ns/net"), "jobs": []}
    for uid, other in zip(accounts, reversed(accounts)):
        home = Path(f"/run/host/home{uid}")
        home.mkdir()
        words = job.format(here=f"/run/host/together/{uid}", other=f"/run/host/together/{other}")
        (home / "job.sh").write_text(f"#!/bin/sh\\n{words}\\n")
        (home / "job.sub").write_text(f"universe = vanilla\\ninitialdir = {home}\\nexecutable = {home}/job.sh\\n"
            "output = out\\nerror = err\\nlog = log\\nshould_transfer_files = yes\\nrequest_cpus = 1\\n"
            "request_memory = 64MB\\nrequest_disk = 1MB\\nqueue\\n")
        (home / "job.sh").chmod(0o755)
        for path in (home, *home.iterdir()):
            shutil.chown(path, uid, uid)
        clusters[uid] = tool("condor_submit", "-terse", str(home / "job.sub"), uid=uid).split(".")[0]
    for uid, cluster in clusters.items():
        wanted = ("ExitCode", "ChirpNetworkBytesIn", "LastRemoteHost")
        ask = ("condor_history", cluster, "-limit", "1", "-af", *wanted)
        said = wait_until(f"job {cluster}", 180, lambda: tool(*ask).split() or None)
        home = Path(f"/run/host/home{uid}")
        told["jobs"].append([said, (home / "out").read_text(), (home / "err").read_text()])
except (TimeoutError, ProgramFailed) as error:
    logs = [path.read_text() for path in Path("/run/host").glob("home*/log")]
    raise SystemExit("\\n".join([str(error), folder.log_tail(), open("broker.log").read(), *logs]))
master.send_signal(3)
master.wait(60)
service.terminate()
told["service"] = service.wait(60)
told["links"] = subprocess.run(["ip", "link"], capture_output=True, text=True).stdout.count("htvj")
print(json.dumps(told))
"""


@pytest.fixture(scope="module", params=SLOTS)
def told(request):
    if why := obstacle():
        pytest.skip(why)
    trial = [TRIAL, str(CHECKOUT), json.dumps(ACCOUNTS), str(condor_prefix.prefix()), json.dumps(SLOTS[request.param])]
    done = subprocess.run(
        [*APART, "sh", "-euc", HOST, "host", sys.executable, "", *trial], capture_output=True, text=True,
        timeout=400, preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "slots": request.param}


def test_jobs_of_two_accounts_run_at_once_each_with_a_network_of_its_own(told):
    networks = {told["host"]}
    for uid, ((code, bytes_in, slot), said, complaint) in zip(ACCOUNTS, told["jobs"]):
        lines = said.splitlines()
        assert (code, lines[:2], lines[3:]) == ("0", [str(uid), "1"], ["from the world", "refused"]), complaint
        assert int(bytes_in) > len("from the world")
        assert ("_" in slot.partition("@")[0]) is (told["slots"] == "partitionable")
        networks.add(lines[2])
    assert len(networks) == 3


def test_nothing_is_left(told):
    assert told["service"] == 0
    assert told["links"] == 0
