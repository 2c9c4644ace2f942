"""Asks a name server over TCP (RFC 7766), on connections that a carrier opens."""

from __future__ import annotations

import struct

from htcondor_vpn.tunnel.carrier import Connect
from htcondor_vpn.tunnel.carriers.server import host_port
from htcondor_vpn.wire.http import ProtocolError
from htcondor_vpn.wire.stream import Stream

_LENGTH = struct.Struct("!H")
_HEADER_BYTES = 12
_MAX_IDLE = 16

#: "NS of the root", recursion desired, as a probe: whatever the answer says, it comes from a name server.
PROBE = bytes.fromhex("7e57 0100 0001 0000 0000 0000 00 0002 0001")


class StreamNameServer:
    """One name server, reached by `connect`; one question at a time on each connection."""

    def __init__(self, host: str, port: int, connect: Connect) -> None:
        self.host, self._port, self._connect = host, port, connect
        self.name = host_port(host, port)
        self._idle: list[_Connection] = []

    @property
    def family(self) -> str:
        """ "ipv4" or "ipv6", by its address."""
        return "ipv6" if ":" in self.host else "ipv4"

    async def ask(self, query: bytes) -> bytes:
        """Sends a DNS message (wire format) and returns the answer; raises OSError, or what `connect` raises."""
        while self._idle:
            try:
                return await self._exchange(self._idle.pop(), query)
            except OSError:
                continue  # the server had closed it meanwhile: try the next one, at last a new one
        return await self._exchange(await self._connected(), query)

    async def probe(self) -> None:
        """Asks on a new connection, since old ones may outlive what makes new ones; raises as `ask`."""
        connection = await self._connected()
        try:
            await connection.exchange(PROBE)
        finally:
            connection.stream.abort()

    async def _connected(self) -> _Connection:
        return _Connection(*await self._connect(self.host, self._port))

    async def _exchange(self, connection: _Connection, query: bytes) -> bytes:
        try:
            answer = await connection.exchange(query)
        except BaseException:
            connection.stream.abort()
            raise
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.stream.abort()
        return answer

    def forget(self) -> None:
        """Cuts the kept connections."""
        for connection in self._idle:
            connection.stream.abort()
        self._idle.clear()


class _Connection:
    def __init__(self, stream: Stream, early: bytes) -> None:
        self.stream = stream
        self._received = bytearray(early)

    async def exchange(self, query: bytes) -> bytes:
        await self.stream.write(_LENGTH.pack(len(query)) + query)
        (length,) = _LENGTH.unpack(await self._take(_LENGTH.size))
        answer = await self._take(length)
        if length < _HEADER_BYTES or answer[:2] != query[:2]:
            raise ProtocolError("what answers is no name server")
        return answer

    async def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            data = await self.stream.read()
            if not data:
                raise ConnectionResetError("the name server ended the connection")
            self._received += data
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken
