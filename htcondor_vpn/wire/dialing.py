"""Connects to whichever of several addresses answers first (RFC 8305, "Happy Eyeballs").

The sockets come from a source, so that they may live in another network namespace than this process does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from htcondor_vpn.errors import VpnError

#: RFC 8305's Connection Attempt Delay.
_STAGGER_SECONDS = 0.25

_TCP_RTO_MAX_MS = 44  # linux/tcp.h
_LAST_RETRY_MS = 10_000

#: A family, and an address of it as socket.connect takes it.
Endpoint = tuple[socket.AddressFamily, tuple[Any, ...]]


class SocketSource(Protocol):
    """Makes sockets of one network namespace."""

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Returns a non-blocking, unconnected socket; raises OSError, or a VpnError where it cannot make any."""


class HostSockets:
    """The `SocketSource` of the namespace that this process is in."""

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        return sock


HOST = HostSockets()


async def connect_first(
    endpoints: Sequence[Endpoint], source: SocketSource = HOST, segment_bytes: int = 0
) -> socket.socket:
    """Returns a tuned, non-blocking TCP connection to the first of `endpoints` that answers.

    `segment_bytes` limits its segments, each way; 0 is no limit of ours. Raises the most telling OSError of them all,
    or what `source` raises. It takes as long as the slowest: put a deadline around it.
    """
    if len(endpoints) == 1:
        return await _attempt(endpoints[0], source, segment_bytes)
    waiting = list(endpoints)
    attempts: set[asyncio.Task[socket.socket]] = set()
    errors: list[OSError] = []
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.ensure_future(_attempt(waiting.pop(0), source, segment_bytes)))
            done, _ = await asyncio.wait(
                attempts, timeout=_STAGGER_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                attempts.discard(task)
                try:
                    return task.result()
                except OSError as error:
                    errors.append(error)
    finally:
        for task in attempts:
            task.add_done_callback(_close_loser)
            task.cancel()
    raise min(errors, key=_telling)


async def _attempt(endpoint: Endpoint, source: SocketSource, segment_bytes: int) -> socket.socket:
    family, address = endpoint
    sock = await source.open(family, socket.SOCK_STREAM)
    try:
        tune(sock)
        if segment_bytes:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except OSError as error:
        sock.close()
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno)) from error  # asyncio's own words are for programmers
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_datagrams(endpoints: Sequence[Endpoint], source: SocketSource = HOST) -> socket.socket:
    """Returns a UDP socket that is connected to the first address to which there is a route.

    No datagram tells more than that. Raises as `connect_first`.
    """
    failure: OSError | None = None
    for family, address in endpoints:
        sock = await source.open(family, socket.SOCK_DGRAM)
        try:
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = failure or error
        else:
            return sock
    assert failure is not None
    raise failure


def tune(sock: socket.socket) -> None:
    """No delay for small pieces, and an idle peer that vanished is noticed after about two minutes (`silence`).

    What was lost while the path was cut is sent again within ten seconds after it is whole, where the kernel can do
    that (Linux 6.15); else it takes as long again as the cut has lasted.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, _LAST_RETRY_MS)


def _close_loser(task: asyncio.Task[socket.socket]) -> None:
    with suppress(asyncio.CancelledError, OSError, VpnError):
        task.result().close()


def _telling(error: OSError) -> int:
    """Orders errors: one that the far side itself gave says more than one of the way there."""
    return {errno.ECONNREFUSED: 0, errno.ECONNRESET: 0, errno.ETIMEDOUT: 1}.get(error.errno or 0, 2)
