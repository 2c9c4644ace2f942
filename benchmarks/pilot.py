"""What a pilot costs: its start, and what it takes at rest."""

from __future__ import annotations

import select
import statistics
import time

from benchmarks.processes import cpu_seconds, family, pss_bytes
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.report import Report
from htcondor_vpn.testbed.site import Site

_REST_SECONDS = 30
_SETTLE_SECONDS = 5


def measure(report: Report, rounds: int, _: int) -> None:
    report.say("A pilot's start, and its rest")
    with Site() as site, SiteGateway(site.dmz, site.folder / "gateway") as gateway:
        starts = []
        for _ in range(max(rounds, 5)):
            begin = time.monotonic()
            done = site.node.run(gateway.run_argv(["cat", "/proc/uptime"]), check=True)
            assert done.stdout
            starts.append(_inside(done.stdout) - begin)
        median = statistics.median(starts)
        report.add("pilot start to COMMAND behind the tunnel", median <= 1, median, "s", "<= 1 s")

        log = site.folder / "pilot.log"
        log.touch()
        process = site.node.start(gateway.run_argv(["sh", "-c", "echo ready; exec sleep 1000"], "-v"), log=log)
        wait_for_log(log, b"^ready$", process)
        _wait(_SETTLE_SECONDS)
        parts = family(process.pid)
        before = sum(map(cpu_seconds, parts))
        _wait(_REST_SECONDS)
        cpu_percent = (sum(map(cpu_seconds, parts)) - before) / _REST_SECONDS * 100
        memory_mb = sum(map(pss_bytes, parts)) / 1e6
        process.terminate()
        process.wait(10)
    report.add("memory of run, engine and broker at rest (PSS)", memory_mb <= 80, memory_mb, "MB", "<= 80 MB")
    report.add("CPU of run, engine and broker at rest", cpu_percent <= 0.2, cpu_percent, "%", "<= 0.2 %")


def _inside(uptime: str) -> float:
    """The monotonic time at which COMMAND read /proc/uptime: the same clock but for the time suspended."""
    return float(uptime.split()[0])


def _wait(seconds: float) -> None:
    """Rest is what is measured here: nothing is waited for but time."""
    select.select([], [], [], seconds)
