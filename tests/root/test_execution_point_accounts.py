"""The service of an execution point with jobs of several accounts: for the real root, in namespaces of its own.

All files are in a tmpfs there: when its first process ends, nothing is left, and the machine has seen none of it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from htcondor_vpn.linux.namespaces import die_with_parent

CHECKOUT = Path(__file__).parents[2]
ACCOUNTS = (60001, 60002)
APART = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def obstacle() -> str:
    """Returns why these tests cannot run here, or nothing."""
    all_accounts = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    if os.geteuid() != 0 or not all_accounts:
        return "this needs the machine's root: start `make test` or `pytest tests/root` as root"
    tried = subprocess.run([*APART, "true"], capture_output=True, text=True, timeout=60)
    return f"this root can make no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


#: A host with a link to the world, where 198.51.100.1 serves HTTP. Arguments: Python, a starter's text, a trial.
HOST = """
python=$1 starter=$2; shift 2
umask 022
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/host/world
cd /run/host
cp "$(realpath "$python")" condor_starter
printf %s "$starter" >starter.py
echo from the world >world/file
ip link set lo up
ip netns add world
ip link add up0 type veth peer name w0 netns world
ip address add 192.0.2.2/24 dev up0
ip link set up0 up
ip -n world address add 192.0.2.1/24 dev w0
ip -n world address add 198.51.100.1/32 dev lo
ip -n world link set w0 up
ip -n world link set lo up
ip route add default via 192.0.2.1
ip netns exec world "$python" -m http.server 8080 --bind 198.51.100.1 --directory world >/dev/null 2>&1 &
until curl -s -m 5 -o /dev/null http://198.51.100.1:8080/file; do sleep 0.1; done
"$python" -c "$@"
"""

#: Stands in for root's starter: becomes the job's account for the wrapper alone.
STARTER = """
import json, os, subprocess, sys
uid, scratch, libexec, *command = sys.argv[1:]
os.mkdir(scratch)
os.chown(scratch, int(uid), int(uid))
with open(f"{scratch}/.job.ad", "w") as ad:
    ad.write('MyType = "Job"\\nVpnBandwidthMbps = 50\\n')
env = {"PATH": os.environ["PATH"], "_CONDOR_JOB_AD": f"{scratch}/.job.ad"}
group = os.environ.get("JOB_CGROUP")
enter = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', group] if group else []
become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
done = subprocess.run([*enter, *become, f"{libexec}/job-wrapper", *command], env=env, cwd=scratch, capture_output=True,
                      text=True)
print(json.dumps([done.returncode, done.stdout, done.stderr]))
"""

#: Runs on that host: the service, then what is asked of it; prints one JSON object.
TRIAL = """
import errno, json, os, subprocess, sys, tempfile, time
checkout, accounts = sys.argv[1], json.loads(sys.argv[2])
argv = [sys.executable, "-m", "htcondor_vpn.cli.main", "execution-point", "--dir", "/run/htcondor-vpn"]
service = subprocess.Popen(argv, cwd=checkout, stdout=subprocess.PIPE, stderr=open("broker.log", "w"), text=True)
assert service.stdout.readline() == "ready\\n", open("broker.log").read()
environ = {**os.environ, "PYTHONHOME": sys.base_prefix}
job = ("id -u; grep -c 'CapEff:.0000000000000000' /proc/self/status; grep -c 'NoNewPrivs:.1' /proc/self/status;"
       "curl -s -m 20 http://198.51.100.1:8080/file; ping -c 1 -W 20 198.51.100.1 | grep -c '1 received';"
       "nsenter -t 1 -n true 2>&1 | grep -c denied; curl -s -m 5 http://192.0.2.2:22/ || echo refused")
def starter(uid, name, *command, **more):
    argv = ["starter.py", str(uid), f"/run/host/{name}", "/run/htcondor-vpn/libexec", *command]
    return subprocess.Popen(["./condor_starter", "-S", *argv], env=environ, stdout=subprocess.PIPE, text=True, **more)
running = [starter(uid, f"job{uid}", "/bin/sh", "-c", job) for uid in accounts]
told = {"jobs": [json.loads(each.communicate(timeout=100)[0]) for each in running]}
wrapper = ["setpriv", f"--reuid={accounts[0]}", f"--regid={accounts[0]}", "--clear-groups"]
said = subprocess.run([*wrapper, "/run/htcondor-vpn/libexec/job-wrapper", "true"], capture_output=True, text=True)
told["stranger"] = [said.returncode, said.stderr]
code = "import subprocess; print(subprocess.run(['/run/htcondor-vpn/libexec/job-wrapper', 'true']).returncode)"
said = subprocess.run([*wrapper, "./condor_starter", "-S", "-c", code], env=environ, capture_output=True, text=True)
told["ordinary starter"] = [said.stdout.strip(), said.stderr]
def in_cgroups():
    mounts = [line.split() for line in open("/proc/mounts")]
    root = next((words[1] for words in mounts if words[2] == "cgroup2" and os.access(words[1], os.W_OK)), None)
    if root is None:
        return None
    top = tempfile.mkdtemp(prefix="htcondor-vpn-test-", dir=root)
    groups = [f"{top}/{name}" for name in ("service", "service/startd", "service/job", "elsewhere")]
    try:
        for group in groups:
            os.mkdir(group)
        found = []
        for number, group in enumerate(groups[2:]):
            into = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', groups[1], "./condor_starter", "-S"]
            argv = [*into, "starter.py", str(accounts[0]), f"/run/host/grouped{number}", "/run/htcondor-vpn/libexec"]
            said = subprocess.run([*argv, "true"], env={**environ, "JOB_CGROUP": group}, capture_output=True, text=True)
            found.append(json.loads(said.stdout))
        return found
    finally:
        deadline = time.monotonic() + 60
        for group in (*reversed(groups), top):
            while True:
                try:
                    os.rmdir(group)
                    break
                except OSError as error:  # what was in it may still be ending
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
told["cgroups"] = in_cgroups()
service.terminate()
told["service"] = service.wait(60)
told["links"] = subprocess.run(["ip", "link"], capture_output=True, text=True).stdout.count("htv")
told["tables"] = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
told["forwarding"] = open("/proc/sys/net/ipv4/ip_forward").read().strip()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    if why := obstacle():
        pytest.skip(why)
    trial = [TRIAL, str(CHECKOUT), json.dumps(ACCOUNTS)]
    done = subprocess.run(
        [*APART, "sh", "-euc", HOST, "host", sys.executable, STARTER, *trial], capture_output=True, text=True,
        timeout=360, preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(ACCOUNTS)))
def test_each_account_has_its_network_and_no_power(told, number):
    code, said, complaint = told["jobs"][number]
    assert code == 0, complaint
    assert said.splitlines() == [str(ACCOUNTS[number]), "1", "1", "from the world", "1", "1", "refused"]


@pytest.mark.parametrize("who", ["stranger", "ordinary starter"])
def test_an_account_gets_none_without_a_starter_of_roots(told, who):
    code, complaint = told[who]
    assert str(code) == "75"
    assert "was not started by a condor_starter of root's" in complaint


def test_a_wrapper_outside_of_the_startds_control_groups_is_refused(told):
    if told["cgroups"] is None:
        pytest.skip("there are no control groups of version 2 that root may write")
    (code, _, complaint), elsewhere = told["cgroups"]
    assert code == 0, complaint
    assert elsewhere[0] == 75
    assert "which is none of the startd's" in elsewhere[2]


def test_nothing_is_left(told):
    assert told["service"] == 0
    assert told["links"] == 0
    assert "htcondor_vpn" not in told["tables"]
    assert told["forwarding"] == "0"
