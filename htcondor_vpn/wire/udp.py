"""UDP payloads both ways by a connected UDP socket: the `DatagramPipe` that is no more than that."""

from __future__ import annotations

import asyncio
import errno
import socket
import time

from htcondor_vpn.wire.capsules import MAX_PAYLOAD_BYTES
from htcondor_vpn.wire.datagrams import Take

_AT_ONCE = 64

#: The socket is of no more use: the address that it sends from is gone.
_LOST = {errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENODEV}


class UdpPipe:
    """See `DatagramPipe`. Owns `sock`, which is connected and non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._take: Take = lambda _: None
        self.last = time.monotonic()

    def start(self, take: Take) -> None:
        self._take = take
        self._loop.add_reader(self._sock, self._readable)

    def send(self, payload: bytes) -> bool:
        for _ in range(2):  # an error may be that of a datagram before this one
            try:
                self._sock.send(payload)
            except BlockingIOError:
                return False
            except OSError as error:
                self._failed(error)
            else:
                self.last = time.monotonic()
                return True
        return False

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                payload = self._sock.recv(MAX_PAYLOAD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(error)
                continue
            self.last = time.monotonic()
            self._take(payload)

    def _failed(self, error: OSError) -> None:
        """Passes on what ICMP told this socket; any other error is a loss."""
        if error.errno == errno.ECONNREFUSED:
            self._take(None)
        elif error.errno in _LOST:
            self.end()

    async def ended(self, timeout_seconds: float) -> bool:
        done, _ = await asyncio.wait([self._ended], timeout=timeout_seconds)
        return bool(done)

    def end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
