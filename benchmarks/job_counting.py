"""What it costs a job that each of its packets is counted: on its link alone, and through a pilot's tunnel."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from contextlib import ExitStack

from benchmarks.contenders.pilot import PilotContender, stream
from benchmarks.counted_turns import TURN_SECONDS, Rates, server
from benchmarks.inside_job_link import FAR, PORT, classes
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.report import Report
from htcondor_vpn.testbed.site import Site

_CLASSES = 10
_LEAST = 0.98
#: What a pilot is told that the tunnel carries, jobs share.
_NO_LIMIT = {"UP_MBPS": 0, "DOWN_MBPS": 0}
_TIMEOUT_SECONDS = 600.0


def measure(report: Report, rounds: int, seconds: int) -> None:
    """In each round a transfer of every kind takes `seconds` counted, and as many not; twice that on the link alone."""
    pairs = max(round(seconds / TURN_SECONDS), 1)
    report.say("Counting: a job's link, and nothing behind it")
    ratios = []
    for count, name in ((0, "counted"), (_CLASSES, f"{_CLASSES} classes")):
        argv = [sys.executable, "-m", "benchmarks.inside_job_link", str(count), str(2 * rounds * pairs)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"a job's link could not be measured: {done.stderr}")
        for cell, rates in json.loads(done.stdout).items():
            ratios.append(_row(report, f"{name}, {_flows(*cell.split())}, link alone", Rates(*rates)))
    _together(report, "link alone", ratios)
    report.say("Counting: a job's traffic through the tunnel, link not shaped")
    _through_pilots(report, rounds, pairs)


def _through_pilots(report: Report, rounds: int, pairs: int) -> None:
    with ExitStack() as exits:
        site = exits.enter_context(Site())
        gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway"))
        policy = site.folder / "policy"
        policy.write_text("".join(f"[class {name}]\ndestinations = {', '.join(map(str, some))}\n"
                                  for name, some in classes(_CLASSES).items()) + "[rule all]\n")  # fmt: skip
        far_side = site.world.start(server([FAR], PORT), stdout=subprocess.PIPE)
        exits.callback(far_side.wait)
        exits.callback(far_side.kill)
        assert far_side.stdout is not None
        exits.enter_context(far_side.stdout)
        if not far_side.stdout.readline():
            raise RuntimeError("the far side does not listen")
        plain = exits.enter_context(stream(site, gateway, "plain", **_NO_LIMIT))
        classed = exits.enter_context(stream(site, gateway, "classed", **_NO_LIMIT, JOB_POLICY_FILE=policy))
        kinds = {
            "counted": (plain, ""),
            f"{_CLASSES} classes": (classed, ""),
            f"{_CLASSES} classes, flight recorder": (classed, "VpnFlightRecorder = true"),
        }
        found: dict[str, Rates] = {}
        for _ in range(rounds):
            for name, (pilot, ad) in kinds.items():
                for flows in (1, 10):
                    for way in ("up", "down"):
                        key = f"{name}, {_flows(way, flows)}, through the tunnel"
                        rates = _through(site, pilot, ad, way, flows, pairs)
                        found[key] = found.get(key, Rates([], [])).plus(rates)
        _together(report, "through the tunnel", [_row(report, name, rates) for name, rates in found.items()])


def _through(site: Site, pilot: PilotContender, ad: str, way: str, flows: int, pairs: int) -> Rates:
    words = [pilot.command, FAR, PORT, way, flows, pairs, ad]
    argv = [sys.executable, "-m", "benchmarks.inside_counted_pilot", *map(str, words)]
    return Rates(*json.loads(site.node.run(argv, timeout_seconds=_TIMEOUT_SECONDS, check=True).stdout))


def _row(report: Report, name: str, rates: Rates) -> float:
    figures = f"({rates.median_counted:,.0f} of {rates.median_bare:,.0f} Mbit/s)"
    report.add(f"{name}: times not counted", rates.ratio >= _LEAST, rates.ratio, figures, f">= {_LEAST:g}")
    return rates.ratio


def _together(report: Report, where: str, ratios: list[float]) -> None:
    """Single rows scatter by more than counting takes; the mean of all does so less, by the standard error told."""
    mean, error = statistics.fmean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    name = f"mean of these {len(ratios)} rows, {where}: times not counted"
    report.add(name, mean >= _LEAST, mean, f"(± {error:.1g})", f">= {_LEAST:g}")


def _flows(way: str, flows: object) -> str:
    return f"{flows} flow{'s' if str(flows) != '1' else ''} {way}"
