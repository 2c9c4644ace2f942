"""Whether the other end of a TCP connection still answers, by the kernel's own account of it (TCP_INFO, tcp(7)).

Left alone, the kernel sends for a quarter of an hour again and again what nobody acknowledges: to a gateway that lost
its power, or from an address that this host has no more. Its own limit, TCP_USER_TIMEOUT, is none for us: it would also
cut a flow whose reader only stalls, though that one answers every question whether it still does.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterable

#: How long a flow may go unanswered: together with the time until that is seen, about as long as keep-alive takes to
#: find an idle connection dead (`dialing.tune`).
FLOW_SECONDS = 100.0
_LOOK_SECONDS = 20.0

#: One or two lost packets are no silence.
_TRIES = 3

#: struct tcp_info (linux/tcp.h): tcpi_retransmits, tcpi_probes, and tcpi_last_ack_recv in ms.
_TCP_INFO = struct.Struct("=xxBB52xI")


class Silence:
    """How long the other end of one of `socks` has left unanswered what was sent to it; look again and again."""

    def __init__(self, *socks: socket.socket) -> None:
        self._socks = socks
        self._since: float | None = None

    def seconds(self) -> float:
        """Since the first look that found it so, if nothing has come since; else 0."""
        now = time.monotonic()
        longest = max(map(_unanswered_seconds, self._socks), default=0.0)
        if not longest:
            self._since = None
        elif self._since is None or longest < now - self._since:
            self._since = now
        return now - self._since if self._since is not None else 0.0


def repeats(sock: socket.socket) -> int:
    """How often in a row something was sent again in vain; 0 for what is no TCP connection, or none any more."""
    return _repeats(sock)[0]


def _unanswered_seconds(sock: socket.socket) -> float:
    """When anything came last, if what was sent since has been repeated in vain; else 0."""
    count, seconds = _repeats(sock)
    return seconds if count >= _TRIES else 0.0


def _repeats(sock: socket.socket) -> tuple[int, float]:
    """How often something was sent again in vain, and how long ago anything came, seconds."""
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return 0, 0.0
    retransmits, probes, last_ack_ms = _TCP_INFO.unpack(told)
    return retransmits + probes, last_ack_ms / 1e3


async def done_or_silent(done: asyncio.Future[None], socks: Iterable[socket.socket]) -> None:
    """Waits until `done` is, or the other end of one of `socks` has been silent for `FLOW_SECONDS`."""
    silence = Silence(*socks)
    while not done.done() and silence.seconds() < FLOW_SECONDS:
        await asyncio.wait([done], timeout=_LOOK_SECONDS)
