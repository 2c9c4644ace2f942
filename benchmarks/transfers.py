"""Transfers by iperf3, contender after contender in each round, so that what the machine does besides hits them all."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

from benchmarks.contenders import Contender, cpu_seconds_of
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.services import IPERF_PORTS
from htcondor_vpn.testbed.site import Site

_TIMEOUT_SECONDS = 90
_PATIENCE_SECONDS, _PAUSE_SECONDS = 20, 0.1
#: The server has to hear of the end of a transfer, be a packet lost, before the way to it is taken away.
_LINGER_SECONDS = 0.5


class Cell(NamedTuple):
    """So many connections at once, `way` "up" (towards the world) or "down"."""

    flows: int
    way: str


def cells(*flows: int) -> list[Cell]:
    """Cells of these numbers of flows, each way."""
    return [Cell(count, way) for count in flows for way in ("up", "down")]


@dataclass(frozen=True)
class Goal:
    """What one contender's median rate must be, as a multiple of another's; `flows`: in these cells alone."""

    contender: str
    versus: str
    at_least: float
    flows: tuple[int, ...] = ()


class Sample(NamedTuple):
    """One transfer: the rate at which the receiver got payload, and what the contender's processes took for it."""

    mbps: float
    cpu_seconds_per_gb: float


class Samples:
    """All transfers of one comparison."""

    def __init__(self) -> None:
        self._found: dict[Cell, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))

    def add(self, cell: Cell, contender: str, sample: Sample) -> None:
        self._found[cell][contender].append(sample)

    def mbps(self, cell: Cell, contender: str) -> float:
        return statistics.median(sample.mbps for sample in self._found[cell][contender])

    def report_ratios(self, report: Report, goals: Sequence[Goal], link: str) -> None:
        """A row for each cell and goal whose contenders were measured."""
        for cell, by in self._found.items():
            for goal in goals:
                if goal.contender not in by or goal.versus not in by or (goal.flows and cell.flows not in goal.flows):
                    continue
                one, other = self.mbps(cell, goal.contender), self.mbps(cell, goal.versus)
                name = f"{goal.contender}, {_flows(cell)}, {link}: times {goal.versus}"
                figures = f"({one:,.0f} of {other:,.0f} Mbit/s)"
                report.add(name, one / other >= goal.at_least, one / other, figures, f">= {goal.at_least:g}")

    def report_cpu(self, report: Report, contender: str, flows: int, at_most: float | None = None) -> None:
        """Rows of processor seconds for each GB (1e9 bytes) of payload, node and gateway together, up and down."""
        for cell, by in self._found.items():
            if cell.flows == flows and contender in by:
                value = statistics.median(sample.cpu_seconds_per_gb for sample in by[contender])
                wanted = MEASURED if at_most is None else f"<= {at_most:g} s"
                good = at_most is None or value <= at_most
                report.add(f"CPU per GB, both ends, {contender}, {_flows(cell)}", good, value, "s", wanted)


def compare(
    site: Site, contenders: Sequence[Contender], in_cells: Sequence[Cell], rounds: int, seconds: int
) -> Samples:
    """Measures every contender in every cell, `rounds` times."""
    samples = Samples()
    for _ in range(rounds):
        for cell in in_cells:
            for contender in contenders:
                with contender.turn():
                    samples.add(cell, contender.name, transfer(site, contender, cell, seconds))
                    time.sleep(_LINGER_SECONDS)
    return samples


def transfer(site: Site, contender: Contender, cell: Cell, seconds: int) -> Sample:
    """One transfer of `seconds`, after a first second that does not count for the rate."""
    command = [
        find_program("iperf3"), "--json", "--client", str(plan.WORLD["iperf"].v4), "--time", str(seconds),
        "--omit", "1", "--parallel", str(cell.flows),
        *(["--reverse"] if cell.way == "down" else []),
    ]  # fmt: skip
    until = time.monotonic() + _PATIENCE_SECONDS
    for port in cycle(IPERF_PORTS):
        before = cpu_seconds_of(contender)
        done = site.node.run(contender.argv([*command, "--port", str(port)]), timeout_seconds=_TIMEOUT_SECONDS)
        cpu_seconds = cpu_seconds_of(contender) - before
        told = json.loads(done.stdout)
        if "error" not in told:
            break
        said = f"{contender.name}, {_flows(cell)}: iperf3: {told['error']} {done.stderr}"
        if time.monotonic() > until:
            raise RuntimeError(said)
        if "busy" not in said:  # with the end of the transfer before
            print(f"{said}; it is tried again", file=sys.stderr)
        time.sleep(_PAUSE_SECONDS)
    # The processor time is that of the whole transfer, the omitted second included.
    gigabytes = sum(interval["sum"]["bytes"] for interval in told["intervals"]) / 1e9
    return Sample(float(told["end"]["sum_received"]["bits_per_second"]) / 1e6, cpu_seconds / gigabytes)


def _flows(cell: Cell) -> str:
    return f"{cell.flows} flow{'s' if cell.flows > 1 else ''} {cell.way}"
