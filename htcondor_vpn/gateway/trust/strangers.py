"""Connections that nobody has authenticated yet: bounded for each source address, so that one host cannot starve all.

All nodes of a site may come from one address. So an address counts for more the more of its connections have
authenticated, handshakes that lead to that cost nothing, and what comes too fast waits before it is turned away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Union

log = logging.getLogger(__name__)

#: How many authenticated connections let an address count for one more.
_CONNECTIONS_PER_SHARE = 10
#: Handshakes of one address that go on at once: each holds about 75 kB, and waits for its peer.
_HANDSHAKES_AT_ONCE = 100
#: How long a handshake may take, in seconds, while half of those are under way: so that an address is not blocked for
#: long by those of its hosts that never finish one.
_PRESSED_SECONDS = 3.0
#: How many seconds' worth of handshakes may come at once after a pause.
_BURST_SECONDS = 10.0
#: What a refused credential costs, in handshakes.
_REFUSAL_COST = 5.0
_LOG_EVERY_SECONDS = 60.0
_MAX_IDLE_SOURCES = 10_000

#: An IPv4 address, or the number of an IPv6 /64, which is what one host can take all addresses of.
Source = Union[str, int]


@dataclass
class _Source:
    """What is known of an address. `balance` counts handshakes that it has in store, at the time `stamp`."""

    balance: float
    stamp: float
    strangers: int = 0
    authenticated: int = 0
    shaking: int = 0
    logged: float = -_LOG_EVERY_SECONDS
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_HANDSHAKES_AT_ONCE))

    @property
    def share(self) -> float:
        return 1.0 + self.authenticated / _CONNECTIONS_PER_SHARE


class Strangers:
    """Counts by source address. `per_address` connections may be unauthenticated, `total` of all addresses together.

    A source may begin `rate` handshakes a second.
    """

    def __init__(self, per_address: int, total: int, rate: float) -> None:
        self._per_address, self._total, self._rate = per_address, total, rate
        self._strangers = 0
        self._sources: dict[Source, _Source] = {}

    def visit(self, address: str) -> Visit | None:
        """Notes a new connection from `address`, or returns None if it has to be turned away."""
        now = time.monotonic()
        key = source_of(address)
        source = self._sources.get(key)
        if source is None:
            if len(self._sources) >= _MAX_IDLE_SOURCES:
                self._forget_idle()
            source = self._sources[key] = _Source(self._rate * _BURST_SECONDS, now)
        full = self._strangers >= self._total and not source.authenticated
        if full or source.strangers >= self._per_address * source.share:
            if now - source.logged >= _LOG_EVERY_SECONDS:
                source.logged = now
                whose = "this gateway" if full else address
                log.warning("peer=%s is turned away: too many connections of %s are unauthenticated", address, whose)
            return None
        self._strangers += 1
        source.strangers += 1
        return Visit(self, source)

    def reserve(self, source: _Source) -> float:
        """Takes one handshake from a source's store; returns in how many seconds it may begin."""
        now, rate = time.monotonic(), self._rate * source.share
        source.balance = min(source.balance + (now - source.stamp) * rate, rate * _BURST_SECONDS) - 1.0
        source.stamp = now
        return max(0.0, -source.balance / rate)

    def settled(self, source: _Source) -> None:
        """Notes that a connection is a stranger's no more."""
        self._strangers -= 1
        source.strangers -= 1

    def _forget_idle(self) -> None:
        """Forgets the sources that have been away for so long that their store is full again."""
        before = time.monotonic() - _BURST_SECONDS
        for key, source in list(self._sources.items()):
            if not (source.strangers or source.authenticated) and source.stamp < before and source.balance >= 0:
                del self._sources[key]


class Visit:
    """One connection, from its acceptance to its end. `end` is idempotent, and so is what comes before it."""

    def __init__(self, strangers: Strangers, source: _Source) -> None:
        self._strangers, self._source = strangers, source
        self._stranger, self._authenticated, self._shaking = True, False, False

    async def turn(self) -> None:
        """Waits until the handshake may begin; `greeted` or `end` make room for the next one."""
        delay_seconds = self._strangers.reserve(self._source)
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        await self._source.slots.acquire()
        self._shaking = True
        self._source.shaking += 1

    def patience_seconds(self, most_seconds: float) -> float:
        """How long the handshake may take that now begins."""
        pressed = self._source.shaking > _HANDSHAKES_AT_ONCE // 2
        return min(most_seconds, _PRESSED_SECONDS) if pressed else most_seconds

    def greeted(self) -> None:
        """The handshake is over."""
        if self._shaking:
            self._shaking = False
            self._source.shaking -= 1
            self._source.slots.release()

    def authenticated(self) -> None:
        """The peer has shown a good credential."""
        if self._stranger:
            self._stranger, self._authenticated = False, True
            self._strangers.settled(self._source)
            self._source.authenticated += 1
            self._source.balance += 1.0

    def refused(self) -> None:
        """The peer has shown none, or a bad one."""
        self._source.balance -= _REFUSAL_COST

    def end(self) -> None:
        self.greeted()
        if self._stranger:
            self._stranger = False
            self._strangers.settled(self._source)
        if self._authenticated:
            self._authenticated = False
            self._source.authenticated -= 1


def source_of(address: str) -> Source:
    """Returns what `address` (without a zone) is counted by."""
    parsed = ip_address(address.partition("%")[0])
    return int(parsed) >> 64 if isinstance(parsed, IPv6Address) else address
