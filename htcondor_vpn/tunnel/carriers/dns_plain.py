"""Asks a name server as every resolver does: by a datagram first, over TCP if the answer is too long or none comes."""

from __future__ import annotations

import asyncio
import socket

from htcondor_vpn.tunnel.carriers.dns_stream import PROBE, StreamNameServer
from htcondor_vpn.tunnel.carriers.server import host_port
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.dialing import Endpoint, SocketSource, connect_datagrams, connect_first
from htcondor_vpn.wire.stream import PlainStream

_DATAGRAM_SECONDS = 1.0
_MAX_MESSAGE = 65535
_HEADER_BYTES = 12
_QR, _TC = 0x80, 0x02  # in the third byte of a message (RFC 1035, 4.1.1)


class PlainNameServer:
    """See `NameServer`: the one at `address`, asked by sockets of `source`."""

    def __init__(self, address: str, port: int, source: SocketSource) -> None:
        self.name = host_port(address, port)
        self.family = "ipv6" if ":" in address else "ipv4"
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._endpoint: Endpoint = (family, (address, port))
        self._source = source
        self._stream = StreamNameServer(address, port, self._connect)

    async def ask(self, query: bytes) -> bytes:
        try:
            with Deadline(_DATAGRAM_SECONDS):
                answer = await self._exchanged(query)
        except (OSError, asyncio.TimeoutError):
            return await self._stream.ask(query)
        return await self._stream.ask(query) if answer[2] & _TC else answer

    async def probe(self) -> None:
        await self.ask(PROBE)

    async def _exchanged(self, query: bytes) -> bytes:
        """Each question from a socket of its own: who does not see it cannot guess the port that it came from."""
        with await connect_datagrams([self._endpoint], self._source) as sock:
            sock.send(query)
            while True:
                answer = await asyncio.get_running_loop().sock_recv(sock, _MAX_MESSAGE)
                if len(answer) >= _HEADER_BYTES and answer[:2] == query[:2] and answer[2] & _QR:
                    return answer

    async def _connect(self, _host: str, _port: int) -> tuple[PlainStream, bytes]:
        return PlainStream(await connect_first([self._endpoint], self._source)), b""

    def forget(self) -> None:
        self._stream.forget()
