"""The rates at which this process may carry each pilot's bytes, and the turns of the pilot's flows within them.

Each pilot has a token bucket for each direction. A flow that finds it empty waits in the pilot's queue, and each turn
is a read of the same size: so a pilot's flows share equally, and no reader is held up by another pilot's. How much of a
limit over several processes and pilots is whose is decided elsewhere (`allocation`), and told by `set_rates`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from htcondor_vpn.wire.pace import FREE, Paces

#: A turn's bytes are those of so many seconds, within bounds.
_TURN_SECONDS = 0.01
_FEWEST_BYTES, _MOST_BYTES = 4096, 256 * 1024
#: What a bucket holds, in seconds of its rate: the timers of a busy loop are late by that much.
_BURST_SECONDS = 0.05
#: After so many reports without need a share is again what it was at first: what it had then is others' now.
_IDLE_REPORTS = 2


@dataclass(frozen=True)
class Rates:
    """Bytes a second up and down, math.inf for no limit: of the whole gateway, and of a pilot.

    `particular` are those of pilots whose names match a pattern (fnmatch); the first that does counts.
    """

    total: tuple[float, float] = (math.inf, math.inf)
    pilot: tuple[float, float] = (math.inf, math.inf)
    particular: tuple[tuple[str, float, float], ...] = ()

    def of(self, pilot: str) -> tuple[float, float]:
        """What one pilot may carry at most."""
        for pattern, up, down in self.particular:
            if fnmatchcase(pilot, pattern):
                return up, down
        return self.pilot


class Need(NamedTuple):
    """What one pilot asks of one direction in one process.

    Its limit, bytes a second; the bytes that it has used since the last time; how many of its flows had to wait.
    """

    limit: float
    used: int
    waiting: int


class Share:
    """One pilot's bucket of one direction, a `Pace`."""

    def __init__(self, limit: float, rate: float) -> None:
        self.limit = limit
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Callable[[], None]] = deque()
        self._waited: set[Callable[[], None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._serving = False
        self._used = self.idle = 0
        self._balance, self._at = 0.0, self._loop.time()
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Bytes a second from now on; math.inf is no limit."""
        self._refill()
        self.rate = rate
        self._turn = int(min(max(rate * _TURN_SECONDS, _FEWEST_BYTES), _MOST_BYTES))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue:
            self._arm()

    def room(self, again: Callable[[], None]) -> int:
        """As `Pace.room`."""
        if math.isinf(self.rate):
            return _MOST_BYTES
        self._refill()
        if self._serving or (self._balance > 0 and not self._queue):
            return self._turn
        self._queue.append(again)
        self._waited.add(again)
        if self._timer is None:
            self._arm()
        return 0

    def spend(self, count: int) -> None:
        """As `Pace.spend`."""
        self._balance -= count
        self._used += count

    def takes(self, count: int) -> bool:
        """As `Pace.takes`. Datagrams do not wait for a turn, but cannot take more than a burst in advance."""
        self._refill()
        if self._balance < -max(self.rate * _BURST_SECONDS, self._turn):
            return False
        self.spend(count)
        return True

    def need(self) -> Need:
        """What was used and wanted since the last call."""
        need = Need(self.limit, self._used, len(self._waited.union(self._queue)))
        self._used, self._waited = 0, set()
        self.idle = 0 if need.used or need.waiting else self.idle + 1
        return need

    def _refill(self) -> None:
        now = self._loop.time()
        if hasattr(self, "rate") and not math.isinf(self.rate):
            most = max(self.rate * _BURST_SECONDS, self._turn)
            self._balance = min(self._balance + self.rate * (now - self._at), most)
        else:
            self._balance = 0.0
        self._at = now

    def _arm(self) -> None:
        missing = max(0.0, -self._balance)
        self._timer = self._loop.call_later(missing / self.rate if self.rate else 1.0, self._serve)

    def _serve(self) -> None:
        """Gives a turn to each flow that waits, as long as there is something left; none waits anew meanwhile."""
        self._timer = None
        self._refill()
        self._serving = True
        try:
            while self._queue and (self._balance > 0 or math.isinf(self.rate)):
                self._queue.popleft()()
        finally:
            self._serving = False
        if self._queue:
            self._arm()


class Shares:
    """The shares of all pilots in this process, one of `processes`."""

    def __init__(self, rates: Rates, processes: int = 1) -> None:
        self._rates, self._processes = rates, processes
        self._shares: dict[str, tuple[Share, Share]] = {}

    def of(self, pilot: str) -> Paces:
        """The paces of a pilot's flows."""
        own = self._rates.of(pilot)
        if all(map(math.isinf, (*own, *self._rates.total))):
            return FREE
        shares = self._shares.get(pilot)
        if shares is None:
            up, down = (Share(limit, self._first(limit, total)) for limit, total in zip(own, self._rates.total))
            shares = self._shares[pilot] = up, down
        return Paces(*shares)

    def _first(self, limit: float, total: float) -> float:
        """A rate to begin with, until it is known what others want."""
        return min(limit, total / (len(self._shares) + 1)) / self._processes

    def needs(self) -> list[tuple[str, Need, Need]]:
        """What the pilots need, up and down; those that need nothing are left out."""
        found = []
        for pilot, shares in self._shares.items():
            up, down = (share.need() for share in shares)
            if up.used or up.waiting or down.used or down.waiting:
                found.append((pilot, up, down))
            for share, total in zip(shares, self._rates.total):
                if share.idle == _IDLE_REPORTS:
                    share.set_rate(self._first(share.limit, total))
        return found

    def forget_all_but(self, pilots: Container[str]) -> None:
        """Forgets pilots that have no flow."""
        self._shares = {pilot: shares for pilot, shares in self._shares.items() if pilot in pilots}

    def set_rates(self, rates: Iterable[tuple[str, float, float]]) -> None:
        """Sets pilots' rates up and down, bytes a second."""
        for pilot, *both in rates:
            for share, rate in zip(self._shares.get(pilot, ()), both):
                share.set_rate(rate)
