"""What a job's own network adds to its start and end: hook, wrapper, wiring, totals; and others' ways beside it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders.job_networks import COMMANDS, Script, cni
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.host import Host
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.site import Site

JOBS_A_ROUND = 20
AMONG_OTHERS_A_ROUND = 60
AT_ONCE = 20
OTHERS = 47  # with the one that is measured: the slots of a whole HPC node
_INSIDE = Path(__file__).with_name("inside_pilot.py")

Seconds = dict[str, float]


def measure(report: Report, rounds: int, _: int) -> None:
    report.say("A job's own network")
    counts = (rounds * JOBS_A_ROUND, AT_ONCE, rounds * AMONG_OTHERS_A_ROUND, OTHERS)
    with Site() as site, SiteGateway(site.dmz, site.folder / "gateway") as gateway:
        inside = [sys.executable, "-I", str(_INSIDE), *map(str, counts), str(plan.WORLD["http"].v4)]
        told = json.loads(site.node.run(gateway.run_argv(inside), timeout_seconds=900, check=True).stdout)
        addresses = site.folder / "cni"
        addresses.mkdir()
        none = _script_ms(site.node, Script("nothing", ":", ":"), rounds)
        scripts = {each.name: _script_ms(site.node, each, rounds) - none for each in (COMMANDS, cni(addresses))}
    _added(report, told["alone"], "", {"median": (0.5, 50), "p95": (0.95, 100)})
    _added(report, told["among"], f" among {OTHERS} others", {"median": (0.5, 25), "p99": (0.99, 60)})
    third = len(told["among"]) // 3
    first, last = (statistics.median(job["broker"] for job in told["among"][part]) for part in
                   (slice(third), slice(-third, None)))  # fmt: skip
    growth = last / first
    report.add("the broker's time for a job, the last third by the first", growth <= 1.3, growth, "", "<= 1.3")
    added = _milliseconds(told["at_once"], told["at_once_plain"])
    for name, value in (("median", statistics.median(added)), ("longest", added[-1])):
        report.add(f"added when {AT_ONCE} jobs start at once, {name}", True, value, "ms", MEASURED)
    for name, value in scripts.items():
        report.add(f"{name}, start and end", True, value, "ms", MEASURED)


def _added(report: Report, jobs: Sequence[Seconds], where: str, wanted: dict[str, tuple[float, float]]) -> None:
    """Adds rows of what is added to a job: as wanted, and where it goes."""
    added = _milliseconds(jobs, jobs)
    for name, (part, most) in wanted.items():
        value = added[int(part * len(added))]
        report.add(f"added to a job{where}, {name} of {len(added)}", value <= most, value, "ms", f"<= {most} ms")
    for part, text in {"hook": "the hook", "wrapper": "the wrapper", "interpreter": "Python's start alone"}.items():
        value = (statistics.median(job[part] for job in jobs) - _plain(jobs)) * 1e3
        report.add(f"  {text}{where}, median", True, value, "ms", MEASURED)


    value = statistics.mean(job["broker"] for job in jobs) * 1e3
    report.add(f"  the broker's processor time{where}, mean", True, value, "ms", MEASURED)


def _plain(jobs: Sequence[Seconds]) -> float:
    return statistics.median(job["plain"] for job in jobs)


def _milliseconds(jobs: Sequence[Seconds], plain: Sequence[Seconds]) -> list[float]:
    """What hook and wrapper add to each job, in order of size, over the same job without."""
    return sorted((job["hook"] + job["wrapper"] - _plain(plain)) * 1e3 for job in jobs)


def _script_ms(host: Host, script: Script, rounds: int) -> float:
    """The median of what start and end take together, the commands by which they come to the host included."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for lines in (script.start, script.end):
            host.run(["sh", "-c", lines], as_root=True, check=True)
        taken.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(taken)
