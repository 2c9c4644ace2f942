"""Connections to a gateway that are there before a flow needs one: it then costs one round trip instead of three.

They are made while there is demand, and not replaced when there was none for a minute. How many stand ready grows with
flows that come faster than connections are made, and shrinks with connections that nobody wanted.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from htcondor_vpn.errors import VpnError
from htcondor_vpn.wire.http import HttpConnection
from htcondor_vpn.wire.tls import TlsStream

FEWEST, MOST = 2, 8
#: A gateway waits ten seconds for a first request, and 90 for a later one; we are gone before.
FRESH_SECONDS, KEPT_SECONDS = 5.0, 60.0
#: For so long may a request on such a connection stay unacknowledged: its path may have gone in silence.
_SILENCE_MS = 3000

log = logging.getLogger(__name__)


class ReadyConnections:
    """Keeps some of what `connect` makes. `question` asks the gateway anything, so that it lets one wait for longer.

    Both raise `VpnError` or OSError.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[HttpConnection]],
        question: Callable[[HttpConnection], Awaitable[object]],
    ) -> None:
        self._connect, self._question = connect, question
        self._ready: list[_Ready] = []
        self._making: set[asyncio.Task[None]] = set()
        self._wanted = FEWEST
        self._demand_until = 0.0

    def take(self) -> HttpConnection | None:
        """Returns a connection that looks alive, or None; has others made for the next who ask."""
        self._demand_until = asyncio.get_running_loop().time() + KEPT_SECONDS
        if not self._ready and self._making:
            self._wanted = min(2 * self._wanted, MOST)
        connection = self._ready.pop().release() if self._ready else None
        self._refill()
        return connection

    def forget(self) -> None:
        """Cuts them all."""
        for task in self._making:
            task.cancel()
        while self._ready:
            self._ready.pop().release().stream.abort()

    def _refill(self) -> None:
        for _ in range(self._wanted - len(self._ready) - len(self._making)):
            self._start(self._make(None))

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    async def _make(self, fresh: HttpConnection | None) -> None:
        """Makes a connection, or has a `fresh` one wait for longer."""
        try:
            if fresh is None:
                self._ready.append(_Ready(await self._connect(), FRESH_SECONDS, self._aged, self._ready.remove))
            else:
                await self._question(fresh)
                self._ready.insert(0, _Ready(fresh, KEPT_SECONDS, self._unwanted, self._ready.remove))
        except (VpnError, OSError, asyncio.TimeoutError) as error:
            log.debug("no connection is in reserve: %s", error)  # the next flow will find out, and tell

    def _aged(self, ready: _Ready) -> None:
        self._ready.remove(ready)
        self._start(self._make(ready.release()))

    def _unwanted(self, ready: _Ready) -> None:
        self._ready.remove(ready)
        ready.release().stream.abort()
        self._wanted = max(FEWEST, self._wanted - 1)
        if asyncio.get_running_loop().time() < self._demand_until:
            self._refill()


class _Ready:
    """One connection in waiting: `aged` is called after `seconds`, `ended` when the gateway has ended it."""

    def __init__(
        self,
        connection: HttpConnection,
        seconds: float,
        aged: Callable[[_Ready], None],
        ended: Callable[[_Ready], None],
    ) -> None:
        assert isinstance(connection.stream, TlsStream)
        self._connection, self._stream, self._ended = connection, connection.stream, ended
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, aged, self)
        loop.add_reader(self._stream.sock, self._readable)

    def release(self) -> HttpConnection:
        self._timer.cancel()
        asyncio.get_running_loop().remove_reader(self._stream.sock)
        self._stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
        return self._connection

    def _readable(self) -> None:
        if not self._stream.waits():
            self._ended(self)
            self.release().stream.abort()
