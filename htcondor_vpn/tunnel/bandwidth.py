"""Measures what the way to a gateway can carry: half a second of bytes each way, on a connection of its own."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import time

from htcondor_vpn.tunnel.carriers.gateways import Gateway

TARGET = "/.well-known/htcondor-vpn/bytes"
_SECONDS = 0.5
_MAX_BYTES = 64 * 1024 * 1024
_PIECE_BYTES = 64 * 1024
_SIOCOUTQ = 0x5411


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
        await stream.read()  # the answer's head, and the first bytes behind it
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
