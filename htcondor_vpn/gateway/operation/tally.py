"""What flows and bytes there are and were, by pilot, over all processes of a gateway."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

#: How long a pilot without flows is still shown.
_KEPT_SECONDS = 60.0


@dataclass
class Count:
    """Bytes up and down, and flows that ended, since the start; the rates are those of the last tick."""

    ended: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    up_bps: float = 0.0
    down_bps: float = 0.0
    running: dict[int, int] = field(default_factory=dict)  # flows by process
    seen: float = 0.0
    _before: tuple[int, int] = (0, 0)

    @property
    def flows(self) -> int:
        """The flows that run."""
        return sum(self.running.values())

    def tick(self, seconds: float) -> None:
        """Takes the rates, bits a second, of the time since the last tick."""
        up, down = self._before
        self._before = self.bytes_up, self.bytes_down
        self.up_bps, self.down_bps = (self.bytes_up - up) * 8 / seconds, (self.bytes_down - down) * 8 / seconds

    def as_json(self) -> dict[str, Any]:
        """What `gateway status` shows."""
        return {
            "flows": self.flows, "flows_ended": self.ended,
            "bytes_up": self.bytes_up, "bytes_down": self.bytes_down,
            "up_mbps": round(self.up_bps / 1e6, 3), "down_mbps": round(self.down_bps / 1e6, 3),
        }  # fmt: skip


class Tally:
    """The counts, in sum and by pilot; a pilot without flows is forgotten after a while."""

    def __init__(self) -> None:
        self.total = Count()
        self.pilots: dict[str, Count] = {}
        self._ticked = time.monotonic()

    def add(self, process: int, sums: Iterable[tuple[str, int, int, int, int]]) -> None:
        """Takes what a process tells of its pilots: flows that run, and what is new (see `Flows.sums`)."""
        now = time.monotonic()
        for pilot, running, ended, up, down in sums:
            count = self.pilots.setdefault(pilot, Count())
            count.running[process] = running
            count.seen = now
            for each in (count, self.total):
                each.ended += ended
                each.bytes_up += up
                each.bytes_down += down

    def gone(self, process: int) -> None:
        """Counts off the flows of a process that is no more."""
        for count in self.pilots.values():
            count.running.pop(process, None)

    def tick(self) -> None:
        """Takes the rates anew, and forgets pilots that were not seen for long."""
        now = time.monotonic()
        seconds, self._ticked = max(now - self._ticked, 1e-3), now
        for count in (self.total, *self.pilots.values()):
            count.tick(seconds)
        self.pilots = {
            name: count for name, count in self.pilots.items() if count.flows or now - count.seen < _KEPT_SECONDS
        }
