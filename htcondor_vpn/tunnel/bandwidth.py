"""Measures what the way to a gateway can carry: half a second of bytes each way, on a connection of its own."""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import socket
import ssl
import time
from collections.abc import Callable

from htcondor_vpn.errors import VpnError
from htcondor_vpn.tunnel.carrier import Carrier
from htcondor_vpn.tunnel.carriers.gateways import Gateway
from htcondor_vpn.wire.http import ProtocolError
from htcondor_vpn.wire.tls import TlsStream

TARGET = "/.well-known/htcondor-vpn/bytes"
_SECONDS = 0.5
_MAX_BYTES = 64 * 1024 * 1024
_PIECE_BYTES = 64 * 1024
_SIOCOUTQ = 0x5411
_GRANTED = b"HTTP/1.1 200"

#: After a measurement that failed the next one of that gateway waits, each time twice as long as the last.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 60.0, 3600.0

log = logging.getLogger(__name__)


class Bandwidth:
    """What the way to a gateway of ours carries: `rates_mbps` (up, down) as they are known, else measured, once.

    Calls `measured` when they have been.
    """

    def __init__(
        self,
        rates_mbps: tuple[float, float] | None,
        measured: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rates_mbps = rates_mbps
        self._told, self._clock = measured, clock
        self._pauses: dict[str, tuple[float, float]] = {}  # for each gateway, its last one and until when
        #: What measures just now.
        self.task: asyncio.Task[None] | None = None

    def look(self, carrier: Carrier) -> None:
        """Begins to measure, where that is to be done now; to be called again and again while `carrier` works."""
        if self.rates_mbps is not None or self.task is not None or not isinstance(carrier, Gateway):
            return
        pause_seconds, until = self._pauses.get(carrier.name, (0.0, 0.0))
        if not pause_seconds or self._clock() >= until:
            self.task = asyncio.ensure_future(self._measure(carrier, pause_seconds))

    async def _measure(self, gateway: Gateway, pause_seconds: float) -> None:
        try:
            self.rates_mbps = await measure(gateway)
        except (OSError, ssl.SSLError, VpnError, asyncio.TimeoutError) as error:
            pause_seconds = min(max(2 * pause_seconds, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)
            self._pauses[gateway.name] = pause_seconds, self._clock() + pause_seconds
            log.warning(
                "the bandwidth to %s could not be measured, and is measured again in %g s: %s",
                gateway.name, pause_seconds, error,
            )  # fmt: skip
        else:
            self._told()
        finally:
            self.task = None


async def measure(gateway: Gateway) -> tuple[float, float]:
    """Returns the rates (up, down) in Mbit/s; raises OSError, ssl.SSLError, VpnError or asyncio.TimeoutError."""
    down = await asyncio.wait_for(_download(gateway), 10)
    up = await asyncio.wait_for(_upload(gateway), 10)
    return up, down


async def _download(gateway: Gateway) -> float:
    connection = await gateway.connections.connect()
    stream = connection.stream
    try:
        await stream.write(gateway.request_head("GET", f"{TARGET}?count={_MAX_BYTES}"))
        if not (await stream.read()).startswith(_GRANTED):  # the first bytes of the body may stand behind the head
            raise ProtocolError("it grants no download")
        start, count = time.perf_counter(), 0
        while count < _MAX_BYTES - _PIECE_BYTES and (now := time.perf_counter()) - start < _SECONDS:
            try:
                data = await asyncio.wait_for(stream.read(_PIECE_BYTES), _SECONDS - (now - start))
            except asyncio.TimeoutError:
                break
            if not data:
                break
            count += len(data)
        return _mbps(count, time.perf_counter() - start)
    finally:
        stream.abort()


async def _upload(gateway: Gateway) -> float:
    connection = await gateway.connections.connect()
    stream = connection.stream
    assert isinstance(stream, TlsStream)  # as `connect` makes it
    piece = bytes(_PIECE_BYTES)
    try:
        await stream.write(gateway.request_head("POST", TARGET, [("Content-Length", str(_MAX_BYTES))]))
        start, count = time.perf_counter(), 0
        while count < _MAX_BYTES - _PIECE_BYTES and (now := time.perf_counter()) - start < _SECONDS:
            try:
                await asyncio.wait_for(stream.write(piece), _SECONDS - (now - start))
            except asyncio.TimeoutError:
                break
            count += len(piece)
        if not stream.waits():
            raise ProtocolError("it grants no upload")  # else it would not answer before it has all
        return _mbps(max(0, count - _unsent(stream.sock)), time.perf_counter() - start)
    finally:
        stream.abort()


def _unsent(sock: socket.socket) -> int:
    """How many bytes the peer has not acknowledged yet (tcp(7), SIOCOUTQ)."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, _SIOCOUTQ, count)
    return count[0]


def _mbps(count: int, seconds: float) -> float:
    return count * 8 / 1e6 / max(seconds, 1e-6)
