"""What carries bytes both ways: TLS over a TCP connection (`tls`), or that connection as it is."""

from __future__ import annotations

import asyncio
import socket
from typing import Union

from htcondor_vpn.wire.tls import TlsStream, reset

_READ_BYTES = 64 * 1024


class PlainStream:
    """What `TlsStream` is, without TLS: its end is TCP's own, which a middleman can fake.

    `half_closes` is False where the end of our side may end the other one too, whatever the far side still has to say.
    """

    def __init__(self, sock: socket.socket, *, half_closes: bool = True) -> None:
        self.half_closes = half_closes
        sock.setblocking(False)
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def read(self, limit: int = _READ_BYTES) -> bytes:
        return await self._loop.sock_recv(self.sock, limit)

    async def read_exactly(self, count: int) -> bytes:
        """Returns `count` bytes and takes no more; raises ConnectionResetError where the stream ends before."""
        data = b""
        while len(data) < count:
            more = await self._loop.sock_recv(self.sock, count - len(data))
            if not more:
                raise ConnectionResetError("the connection ended in the middle of an answer")
            data += more
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def close(self) -> None:
        self.sock.close()

    def abort(self) -> None:
        reset(self.sock)


#: It belongs to one task at a time.
Stream = Union[TlsStream, PlainStream]
