from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from shell_pilot import wait_until

from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.site import Site

TESTS = Path(__file__).parents[1]

IN_SANDBOX = "import sys; from htcondor_vpn.testbed.sandbox import exec_inside; sys.exit(exec_inside(sys.argv[1:]))"


def sandboxed(*argv: str) -> list[str]:
    """The command line that runs `argv` in a sandbox of its own."""
    return [sys.executable, "-c", IN_SANDBOX, *argv]


@pytest.mark.parametrize("code", [0, 1, 2, 127, 128, 255])
def test_the_exit_code_is_the_commands(site: Site, code: int) -> None:
    assert site.node.run(sandboxed("sh", "-c", f"exit {code}")).returncode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_a_signal_is_128_and_its_number(site: Site, number: int) -> None:
    assert site.node.run(sandboxed("sh", "-c", f"kill -{int(number)} $$")).returncode == 128 + number


def test_a_command_that_is_not_there(site: Site) -> None:
    done = site.node.run(sandboxed("no-such-command"))
    assert "CommandNotFound: there is no command no-such-command" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(site: Site, tmp_path: Path, number: int) -> None:
    log = tmp_path / "log"
    trap = f"trap 'exit 42' {int(number)}; echo waiting; while :; do sleep 0.05; done"
    process = site.node.start(sandboxed("sh", "-c", trap), log=log)
    wait_for_log(log, b"waiting", process)
    process.send_signal(number)
    assert process.wait(60) == 42


@pytest.mark.parametrize("workers", ["0", "2"])
def test_where_namespaces_are_off_tests_are_skipped_and_say_why(site: Site, workers: str) -> None:
    test = TESTS / "linux/test_testbed_capture.py"
    pytest_argv = [sys.executable, "-m", "pytest", "-n", workers, str(test)]
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    limited = ["unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", script, "sh", *pytest_argv]
    done = site.node.run(limited, cwd=TESTS.parent)
    assert done.returncode == 0
    assert "no sandbox: user namespaces cannot be made" in done.stdout
    assert "sysctl user.max_user_namespaces=10000" in done.stdout
    assert "passed" not in done.stdout


def test_inside_is_a_machine_of_its_own(site: Site) -> None:
    script = "id -u; cat /proc/self/uid_map; ls /run; ip -o link | wc -l; echo /proc/[0-9]*; echo $TMPDIR"
    uid, uid_map, run, links, processes, temporary = site.node.run(sandboxed("sh", "-c", script)).stdout.splitlines()
    assert uid == "0"
    assert uid_map.split()[0] == "0"
    assert uid_map.split()[2] == "1"
    assert run == "tmp"
    assert links == "1"
    assert len(processes.split()) <= 3
    assert temporary == "/run/tmp"


def test_orphans_are_reaped(site: Site) -> None:
    script = (
        "(setsid touch /run/tmp/ran &); until [ -e /run/tmp/ran ]; do sleep 0.05; done; "
        "for _ in $(seq 400); do left=$(cat /proc/[0-9]*/stat | grep -c -e ' Z ' -e '(touch)'); "
        "[ $left = 0 ] && break; sleep 0.05; done; echo $left"
    )
    assert site.node.run(sandboxed("sh", "-c", script), timeout_seconds=60).stdout == "0\n"


def _pids_of(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_survives_the_caller(site: Site, tmp_path: Path, number: int) -> None:
    log, mark = tmp_path / "log", f"{os.getpid()}86400"
    script = f"(setsid unshare --user --net sleep {mark} &); ip netns add one; echo started; exec sleep {mark}"
    process = site.node.start(sandboxed("sh", "-c", script), log=log)
    wait_for_log(log, b"started", process)
    pids = wait_until(lambda: len(found := _pids_of(mark)) == 2 and found)
    ends = [os.pidfd_open(pid) for pid in pids]
    process.send_signal(number)
    for end in ends:
        assert select.select([end], [], [], 60)[0], "a process outlived its sandbox"
        os.close(end)
    process.wait(60)
    assert _pids_of(mark) == []


def test_a_file_opened_before_is_written_inside(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    write = (
        "import sys; from pathlib import Path; from htcondor_vpn.testbed.sandbox import *\n"
        "with open_output(Path(sys.argv[1])) as file: file.write('[1]')"
    )
    reserve = (
        "import os, sys; from pathlib import Path; from htcondor_vpn.testbed.sandbox import *\n"
        "path = Path(sys.argv[2]); reserve_output(path); path.chmod(0)\n"
        "sys.exit(exec_inside([sys.executable, '-c', sys.argv[1], str(path)]))"
    )
    done = site.node.run([sys.executable, "-c", reserve, write, str(target)])
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(target.read_text()) == [1]


def test_the_command_line(site: Site) -> None:
    argv = [sys.executable, "-m", "htcondor_vpn.cli.main", "testbed", "run", "--rate-mbps", "50", "--"]
    script = "id -u; node id -u; dmz curl -sS http://http.site.example/peer; exit 7"
    done = site.node.run([*argv, "sh", "-c", script])
    own, users, peer = done.stdout.splitlines()
    assert (done.returncode, own) == (7, "0")
    assert int(users) != 0
    assert peer in ("203.0.113.1", "2001:db8:1::1")
    assert site.node.run([*argv, "sh", "-c", "kill -TERM $$"]).returncode == 128 + signal.SIGTERM
    assert site.node.run(argv).returncode == 64
    assert site.node.run([*argv, "dmz", "htcondor-vpn", "config", "check", "/dev/null"]).returncode == 0


def test_a_site_leaves_nothing(site: Site) -> None:
    script = """
import os, subprocess, sys
from pathlib import Path
from htcondor_vpn.testbed.sandbox import *
from htcondor_vpn.testbed.site import Site
if not inside():
    sys.exit(exec_inside([sys.executable, "-c", sys.argv[1], sys.argv[1]]))
with Site(default_route=True, delay_ms=1) as site:
    for host in (site.node, site.dmz, site.world):
        host.run(["sh", "-c", "(setsid unshare --user --net sleep 86400 >/dev/null 2>&1 &)"])
    host.run(["sh", "-c", "(setsid sleep 86400 >/dev/null 2>&1 &)"], as_root=True)
    assert len(site.processes()) >= 5, site.processes()  # the relay is one of them
site.close()

def lives(process):
    try:
        return ") Z " not in (process / "stat").read_text()  # what is dead is the sandbox's first process' to reap
    except (FileNotFoundError, ProcessLookupError):
        return False

processes = [path for path in Path("/proc").iterdir() if path.name.isdecimal()]
left = [path for path in processes if int(path.name) not in (1, os.getpid()) and lives(path)]
print(len(left), os.listdir("/run"), os.listdir("/run/netns"), len(os.listdir("/proc/self/fd")))
"""
    done = site.node.run([sys.executable, "-c", script, script])
    assert done.stderr == ""
    left, run, networks, descriptors = done.stdout.split(maxsplit=1)[0], *done.stdout.rstrip().rsplit("]", 2)
    assert left == "0"
    assert "site-" not in run
    assert "node" not in networks
    assert int(descriptors) <= 5


def test_shared_memory_is_the_sandboxs_own(site: Site) -> None:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    assert any(line.startswith("shm /dev/shm tmpfs ") for line in mounts)


@pytest.mark.alone
def test_running_as_a_user_costs_little(site: Site) -> None:
    def seconds(argv: list[str]) -> float:
        import time

        samples = []
        for _ in range(9):
            start = time.perf_counter()
            subprocess.run(argv, check=True)
            samples.append(time.perf_counter() - start)
        return sorted(samples)[len(samples) // 2]

    assert seconds(site.node.argv(["true"])) - seconds(["true"]) < 0.02
