"""The flows of one process: those that run, and what is to be told of them and of those that have ended.

Each is told as a record, at its end and, if it lasts, every few seconds with the bytes so far; see `Record`.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections import deque
from typing import NamedTuple

from htcondor_vpn.wire.traffic import Traffic

#: How long the bytes of a flow that runs may go untold, seconds.
PROGRESS_SECONDS = 5.0
#: What waits to be told; beyond it the oldest ends are forgotten, which is counted.
_MAX_ENDED = 50_000


class Record(NamedTuple):
    """One flow as it is told. `outcome` is empty while it runs. Times are in Unix seconds, `seconds` its duration."""

    instance: int  # which process, a random number
    number: int
    pilot: str
    started: float
    seconds: float
    destination: str
    port: int
    protocol: str  # tcp or udp
    via: str  # the address that the connection went to
    bytes_up: int
    bytes_down: int
    outcome: str


class Flow:
    """One flow; `traffic` is counted up while it runs."""

    def __init__(self, number: int, pilot: str, target: str) -> None:
        self.number, self.pilot, self.target = number, pilot, target
        self.traffic = Traffic()
        self.via = self.outcome = ""
        self.started, self._since = time.time(), time.monotonic()
        self.told = (0, 0)  # the bytes up and down that a sum of the pilot has seen
        self.recorded: tuple[int, int] | None = None  # and the last record

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    @property
    def bytes(self) -> tuple[int, int]:
        """Up and down."""
        return self.traffic.bytes_to_plain, self.traffic.bytes_from_plain


class Flows:
    """Counts flows from `begin` to `end`."""

    def __init__(self) -> None:
        self.instance = secrets.randbits(62)
        self.forgotten = 0
        self._numbers = itertools.count(1)
        self._live: dict[int, Flow] = {}
        self._ended: deque[Flow] = deque()
        self._sums: dict[str, list[int]] = {}  # by pilot: flows that ended, and their bytes up and down, untold

    def __len__(self) -> int:
        return len(self._live)

    def begin(self, pilot: str, target: str) -> Flow:
        """Counts a flow to `target`, HOST:PORT with /udp behind it for datagrams."""
        flow = Flow(next(self._numbers), pilot, target)
        self._live[flow.number] = flow
        return flow

    def end(self, flow: Flow, outcome: str) -> None:
        """Counts it off; `outcome` is a word."""
        flow.outcome = outcome
        del self._live[flow.number]
        self._add(flow, ended=1)
        self._ended.append(flow)
        if len(self._ended) > _MAX_ENDED:
            self._ended.popleft()
            self.forgotten += 1

    def sums(self) -> list[tuple[str, int, int, int, int]]:
        """What is new since the last call, by pilot: flows that run, flows that ended, bytes up, bytes down."""
        running: dict[str, int] = {}
        for flow in self._live.values():
            running[flow.pilot] = running.get(flow.pilot, 0) + 1
            self._add(flow)
        sums, self._sums = self._sums, {}
        return [(pilot, running.get(pilot, 0), *sum_) for pilot, sum_ in sums.items()]  # type: ignore[misc]

    def _add(self, flow: Flow, ended: int = 0) -> None:
        sum_ = self._sums.setdefault(flow.pilot, [0, 0, 0])
        now = flow.bytes
        sum_[0] += ended
        sum_[1] += now[0] - flow.told[0]
        sum_[2] += now[1] - flow.told[1]
        flow.told = now

    def ended(self) -> list[Record]:
        """The records of flows that ended since the last call."""
        flows, self._ended = self._ended, deque()
        return [self._record(flow) for flow in flows]

    def progress(self) -> list[Record]:
        """The records of flows that run and have moved since the last call."""
        moved = [flow for flow in self._live.values() if flow.bytes != flow.recorded]
        return [self._record(flow) for flow in moved]

    def _record(self, flow: Flow) -> Record:
        flow.recorded = flow.bytes
        target, _, protocol = flow.target.partition("/")
        host, _, port = target.rpartition(":")
        return Record(
            self.instance, flow.number, flow.pilot, round(flow.started, 3), round(flow.seconds, 3),
            host.strip("[]"), int(port), protocol or "tcp", flow.via, *flow.bytes, flow.outcome,
        )  # fmt: skip
