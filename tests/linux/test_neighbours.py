"""Tests beside each other: each worker has a sandbox of its own, and all that it started ends with it."""

import os
import select
import signal
import sys
from pathlib import Path

from shell_pilot import children, descendants, network_of

from htcondor_vpn.testbed.logs import wait_for_log

TESTS = Path(__file__).parents[1]


def assert_all_end(ends):
    for end in ends:
        assert select.select([end], [], [], 60)[0], "a process outlived its starter"
        os.close(end)


def test_what_a_worker_started_ends_with_it_and_a_worker_with_pytest(site, tmp_path):
    log = tmp_path / "log"
    log.touch()
    argv = [sys.executable, "-m", "pytest", "-n", "2", "-v", str(TESTS / "linux/test_testbed_site.py")]
    process = site.node.start(argv, log=log, cwd=TESTS.parent)
    for worker in (b"gw0", b"gw1"):
        wait_for_log(log, rb"\[" + worker + rb"\].* PASSED", process, timeout_seconds=180)
    sandboxes = children(process.pid)
    assert len(sandboxes) == 2
    workers = [children(init)[0] for sandbox in sandboxes for keeper in children(sandbox) for init in children(keeper)]
    assert len({network_of(pid) for pid in [*workers, process.pid]}) == 3
    ends = [os.pidfd_open(pid) for pid in [sandboxes[0], *descendants(sandboxes[0])]]
    assert len(ends) > 5
    os.kill(workers[0], signal.SIGKILL)
    assert_all_end(ends)
    wait_for_log(log, rb"^\[gw\d\] node down", process, timeout_seconds=60)
    ends = [os.pidfd_open(pid) for pid in descendants(process.pid)]
    process.kill()
    assert_all_end(ends)
    process.wait(60)
