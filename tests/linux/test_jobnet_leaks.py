"""Nothing grows with the number of jobs, and nothing is left of a job, whoever was killed in whatever order.

`HTCONDOR_VPN_TEST_JOBS=2000 .venv/bin/pytest tests/linux/test_jobnet_leaks.py -k grows` is the long form.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobnet_pilot import HERE, Pilot, finished, until

from htcondor_vpn.jobnet import service
from htcondor_vpn.linux import ancestry
from htcondor_vpn.publish.advertiser.state_file import is_alive

pytestmark = pytest.mark.linux

JOBS = int(os.environ.get("HTCONDOR_VPN_TEST_JOBS", "40"))
AT_ONCE = 4
WARM_UP = 12

#: What a job of many does: it talks to somebody, so that each set has an element of it.
TRAFFIC = (sys.executable, str(HERE / "traffic_client.py"), "get", "1000")


@pytest.fixture
def pilot(tmp_path: Path) -> Iterator[Pilot]:
    with Pilot(tmp_path, jobs_up_mbps="1000", jobs_down_mbps="1000") as pilot:
        yield pilot


def elements(pilot: Pilot) -> int:
    """How many elements the sets and maps of jobs have."""
    listed = json.loads(pilot.output("/usr/sbin/nft", "-j", "list", "table", "inet", "htcondor_vpn_jobs"))["nftables"]
    named = (each.get("set") or each.get("map") for each in listed)
    return sum(len(each.get("elem", ())) for each in named if each)


def classes(pilot: Pilot) -> int:
    """How many classes share the rate of all jobs."""
    names = {line.split(": ")[1].split("@")[0] for line in pilot.output("/usr/sbin/ip", "-o", "link").splitlines()}
    return sum(len(pilot.output("/usr/sbin/tc", "class", "show", "dev", name).splitlines()) for name in names)


def held(pid: int) -> tuple[int, int]:
    """The descriptors of a process, and its memory in bytes (proc(5), Rss).

    What it shared with the process that forked it is in that, so that pages which become its own are no growth.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
    return len(os.listdir(f"/proc/{pid}/fd")), memory


def run_jobs(pilot: Pilot, count: int) -> None:
    for start in range(0, count, AT_ONCE):
        starters = [
            pilot.start_job(*TRAFFIC, ad=f'GlobalJobId = "ap#{start + n}.0#1"\nVpnBandwidthMbps = {50 + n}')
            for n in range(min(AT_ONCE, count - start))
        ]
        for starter in starters:
            told = finished(starter)
            assert told["status"] == 0, told["err"]


def settled(pilot: Pilot) -> bool:
    return not pilot.links() and elements(pilot) == 0


@pytest.mark.alone
def test_nothing_grows_with_the_jobs(pilot: Pilot) -> None:
    empty = classes(pilot)
    run_jobs(pilot, WARM_UP)
    assert until(lambda: settled(pilot))
    descriptors, memory = held(pilot.broker_pid)
    run_jobs(pilot, JOBS)
    assert until(lambda: settled(pilot))
    assert until(lambda: classes(pilot) == empty)
    assert until(lambda: held(pilot.broker_pid)[0] < descriptors + JOBS // 4)
    grown = held(pilot.broker_pid)[1] - memory
    print(f"{JOBS} jobs: {grown / 1e3:.0f} kB more in the broker, {descriptors} descriptors")
    assert grown < 2_000_000 + 200 * JOBS


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_left_whoever_is_killed_in_whatever_order(pilot: Pilot, seed: int) -> None:
    empty = classes(pilot)
    scratch = pilot.scratch()
    job = pilot.start_job("/bin/sh", "-c", "echo $$ > pid; mv pid job; sleep 1000 & exec sleep 1000", scratch=scratch)
    assert until(lambda: (scratch / "job").exists() and elements(pilot) > 0)
    starter, wrapper = map(int, (scratch / "pids").read_text().split())
    victims = {"starter": starter, "wrapper": wrapper, "job": int((scratch / "job").read_text()), "broker": 0}
    order = random.Random(seed).sample(sorted(victims), len(victims))
    status = os.stat(f"/proc/{victims['job']}/ns/user")
    namespace = status.st_dev, status.st_ino
    for name in order:
        if name == "broker":
            pilot.kill_broker()
            pilot.start_broker()
            continue
        try:
            os.kill(victims[name], signal.SIGKILL)
        except ProcessLookupError:
            continue  # it went with one that was killed before it
    limit = 2 * service.GRACE_SECONDS + 60
    assert until(lambda: settled(pilot), limit), (order, pilot.links(), elements(pilot))
    def alive() -> dict[int, bytes]:
        found = filter(is_alive, ancestry.processes_within(namespace))
        return {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}

    assert until(lambda: not alive(), limit), (order, alive(), victims, namespace, pilot.inner, pilot.log()[-3000:])
    assert until(lambda: classes(pilot) == empty)
    job.communicate()
