"""HTTP/1.1 on a `Stream`, the client's side: h11 parses, this moves the bytes.

Used with the methods that the gateway knows: CONNECT (RFC 9110, 9.3.6), after which the stream carries the flow, and
plain requests with small bodies, one after the other on a persistent connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import h11

from htcondor_vpn.wire.stream import Stream

#: The longest head of a message, and the longest body that is kept in memory, bytes.
MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 128 * 1024


class ProtocolError(ConnectionError):
    """The peer does not speak HTTP/1.1, or says more than it may."""


class Unanswered(ProtocolError):
    """The connection ended before a word of the answer: the peer may never have seen the request."""


@dataclass(frozen=True)
class Response:
    """A response: header names are in lower case, `body` is whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class HttpConnection:
    """The client's side of a persistent HTTP/1.1 connection."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def exchange(
        self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes = b""
    ) -> Response:
        """Sends a request and returns the response; raises `Unanswered`, `ProtocolError` or OSError.

        After a 2xx answer to CONNECT, or 101 to an upgrade, the stream is the flow's, and `early_bytes` belong to it.
        """
        self._next_cycle()
        fields = list(headers)
        if body:
            fields.append(("Content-Length", str(len(body))))
        try:
            await self._send(method, target, fields, body)
            first = await self.stream.read()
        except OSError as error:
            raise Unanswered(str(error)) from error
        if not first:
            raise Unanswered("the peer ended the connection instead of answering")
        self._h11.receive_data(first)
        head = await self._event()
        while isinstance(head, h11.InformationalResponse):
            if head.status_code == 101:
                return Response(101, _decoded(head.headers))
            head = await self._event()
        if not isinstance(head, h11.Response):
            raise ProtocolError("the peer ended the connection instead of answering")
        fields_in = _decoded(head.headers)
        if method == "CONNECT" and 200 <= head.status_code < 300:
            return Response(head.status_code, fields_in)
        return Response(head.status_code, fields_in, await self._body())

    @property
    def reusable(self) -> bool:
        """Whether another request can follow on this connection."""
        return self._h11.our_state in (h11.IDLE, h11.DONE) and self._h11.their_state in (h11.IDLE, h11.DONE)

    @property
    def early_bytes(self) -> bytes:
        """What the peer sent behind the head with which the connection became a flow's."""
        return bytes(self._h11.trailing_data[0])

    def _next_cycle(self) -> None:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()

    async def _send(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
        try:
            parts = [self._h11.send(h11.Request(method=method, target=target, headers=headers))]
            if body:
                parts.append(self._h11.send(h11.Data(data=body)))
            parts.append(self._h11.send(h11.EndOfMessage()))
        except h11.LocalProtocolError as error:
            raise ProtocolError(str(error)) from error
        await self.stream.write(b"".join(part or b"" for part in parts))

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self.stream.read())
        except h11.RemoteProtocolError as error:
            raise ProtocolError(str(error)) from error
        return event  # type: ignore[return-value]

    async def _body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise ProtocolError(f"a body of more than {MAX_BODY_BYTES} bytes")
        return bytes(body)


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("ascii"): value.decode("latin-1") for name, value in headers}
