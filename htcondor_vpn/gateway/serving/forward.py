"""Plain HTTP requests in absolute form (RFC 9110, 7.6; RFC 9112, 3.2.2), as programs with `http_proxy` set send them.

Pilots use CONNECT alone; this makes the gateway a whole HTTP proxy for curl and its kind. The request's body goes first
and the answer after it, since a TLS connection belongs to one task at a time.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

import h11

from htcondor_vpn.gateway.serving.destinations import parse_target
from htcondor_vpn.gateway.serving.exchange import BadRequest, Exchange, Head
from htcondor_vpn.special_addresses import Address
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.relay import Traffic
from htcondor_vpn.wire.unreachable import Unreachable

#: Not for the next hop (RFC 9110, 7.6.1), and what we answer ourselves (Expect) or set anew (Host).
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"expect", b"host",
}  # fmt: skip
_READ_BYTES = 256 * 1024
_STALL_SECONDS = 60.0
_NO_LIMIT = 1 << 62

RawHeaders = list[tuple[bytes, bytes]]


class Origin:
    """The server that a request in absolute form is for; raises ValueError for a target that is none."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        if parts.scheme.lower() != "http" or not parts.netloc or "@" in parts.netloc:
            raise ValueError("the target is neither a path, nor HOST:PORT for CONNECT, nor a http:// URL")
        self.authority = parts.netloc
        with_port = re.search(r":[0-9]+$", parts.netloc)
        named = parts.netloc if with_port else parts.netloc.rstrip(":") + ":80"
        self.host: Address | str
        self.host, self.port = parse_target(named)
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


async def forward(exchange: Exchange, head: Head, origin: Origin, sock: socket.socket, traffic: Traffic) -> None:
    """Passes one request on by `sock`, a connection to `origin`, and its answer back.

    Raises `Unreachable` while no answer has been begun, then OSError; `BadRequest` for what cannot be passed on.
    """
    upstream = _Upstream(sock, traffic)
    try:
        await upstream.send_request(exchange, head, origin)
        answer = await upstream.answer()
    except asyncio.TimeoutError:
        raise Unreachable(504, "http_response_timeout", "the server does not answer") from None
    except h11.RemoteProtocolError as error:
        name = "http_protocol_error" if traffic.bytes_from_plain else "connection_terminated"
        raise Unreachable(502, name, str(error)) from error
    await exchange.begin(answer.status_code, _end_to_end(answer.headers.raw_items()))
    try:
        while data := await upstream.data():
            await exchange.send(data)
    except (asyncio.TimeoutError, h11.RemoteProtocolError) as error:
        raise ConnectionResetError("the server's answer is not whole") from error
    await exchange.end()


class _Upstream:
    """The connection to the origin server, for one request."""

    def __init__(self, sock: socket.socket, traffic: Traffic) -> None:
        self._sock, self._traffic = sock, traffic
        self._h11 = h11.Connection(h11.CLIENT)
        self._loop = asyncio.get_running_loop()

    async def send_request(self, exchange: Exchange, head: Head, origin: Origin) -> None:
        fields: RawHeaders = [(b"Host", origin.authority.encode("ascii")), *_end_to_end(head.raw_headers)]
        if "transfer-encoding" in head.headers:
            fields.append((b"Transfer-Encoding", b"chunked"))
        fields += [(b"Via", b"1.1 htcondor-vpn"), (b"Connection", b"close")]
        try:
            request = h11.Request(method=head.method, target=origin.path, headers=fields)
            start = self._h11.send(request)
        except h11.LocalProtocolError as error:
            raise BadRequest(str(error)) from error
        try:
            await self._send(start)
            async for chunk in exchange.chunks(_NO_LIMIT):
                await self._send(self._h11.send(h11.Data(data=chunk)))
            await self._send(self._h11.send(h11.EndOfMessage()))
        except _EarlyEnd:
            return  # a server that has heard enough says why in its answer

    async def _send(self, data: bytes | None) -> None:
        self._traffic.bytes_to_plain += len(data or b"")
        try:
            with Deadline(_STALL_SECONDS):
                await self._loop.sock_sendall(self._sock, data or b"")
        except (OSError, asyncio.TimeoutError) as error:
            raise _EarlyEnd from error

    async def answer(self) -> h11.Response:
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("no answer")

    async def data(self) -> bytes:
        """Returns the next piece of the answer's body, b"" at its end."""
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            try:
                with Deadline(_STALL_SECONDS):
                    data = await self._loop.sock_recv(self._sock, _READ_BYTES)
            except asyncio.TimeoutError:  # an OSError too, on Pythons from 3.11
                raise
            except OSError as error:
                raise h11.RemoteProtocolError(f"the connection to the server broke: {error.strerror}") from error
            self._traffic.bytes_from_plain += len(data)
            self._h11.receive_data(data)
        return event


class _EarlyEnd(Exception):
    """The server takes no more of the request."""


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    headers = list(headers)
    named = {
        word.strip().lower() for name, value in headers if name.lower() == b"connection" for word in value.split(b",")
    }
    named.discard(b"content-length")  # how long the body is everyone has to know (RFC 9110, 7.6.1)
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP | named]
