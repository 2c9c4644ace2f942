"""The server's side of a persistent HTTP/1.1 connection, with bodies that stream in and out.

`wire.http` has the pilots' side, where every body is small. A gateway has to see a head, and to know who asks, before
it takes any body.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from socket import SHUT_WR
from typing import Any, Union

import h11

from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.http import MAX_HEAD_BYTES, ProtocolError
from htcondor_vpn.wire.pace import FREE, passed
from htcondor_vpn.wire.tls import TlsStream

_READ_BYTES = 256 * 1024
_LINGER_SECONDS = 2.0
_STALL_SECONDS = 60.0

#: Text has to be ASCII; another's headers are passed on as bytes, which may be anything.
Headers = Iterable[tuple[Union[str, bytes], Union[str, bytes]]]


class BadRequest(ProtocolError):
    """The peer does not speak HTTP/1.1 as it should; `status` is the answer that it has earned."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Head:
    """A request without its body; header names are in lower case. `raw_headers` has them all, in their order."""

    method: str
    target: str
    headers: Mapping[str, str]
    raw_headers: tuple[tuple[bytes, bytes], ...]


class Exchange:
    """One connection's requests and answers, one after the other; bodies that stream keep to `paces`."""

    def __init__(self, stream: TlsStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.paces = FREE
        self._closing = False
        self._method = ""

    async def arrived(self) -> None:
        """Waits until some of the next request has come, or the end. Raises OSError."""
        if not self._h11.trailing_data[0]:
            self._h11.receive_data(await self.stream.read())

    async def head(self) -> Head | None:
        """Returns the next request's head, or None at a clean end; raises `BadRequest` or OSError."""
        event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        raw = tuple(event.headers.raw_items())
        fields = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
        head = Head(event.method.decode("ascii"), event.target.decode("ascii"), fields, raw)
        self._method = head.method
        if head.method == "CONNECT":
            if {"content-length", "transfer-encoding"} & fields.keys():
                self._closing = True
                raise BadRequest("CONNECT has no body")
            await self._event()  # the end of the message; what follows is not HTTP
        return head

    async def chunks(self, limit_bytes: int) -> AsyncIterator[bytes]:
        """Yields the request's body; raises `BadRequest` (413) past `limit_bytes`, and OSError.

        A peer that sends nothing for a minute causes asyncio.TimeoutError.
        """
        if self._h11.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        taken = 0
        while True:
            with Deadline(_STALL_SECONDS):
                event = await self._event()
            if not isinstance(event, h11.Data):
                return
            taken += len(event.data)
            if taken > limit_bytes:
                raise BadRequest(f"the body has more than {limit_bytes} bytes", 413)
            await passed(self.paces.up, len(event.data))
            yield bytes(event.data)

    async def body(self, limit_bytes: int) -> bytes:
        """Returns the request's whole body; raises as `chunks`."""
        return b"".join([chunk async for chunk in self.chunks(limit_bytes)])

    async def begin(self, status: int, headers: Headers = ()) -> None:
        """Sends an answer's head; the body's length has to be in `headers`, or it goes out in chunks."""
        await self._send(_response(status, [*headers, *self._closing_fields()]))

    async def send(self, data: bytes) -> None:
        """Sends a part of an answer's body."""
        await self._send(h11.Data(data=data))
        await passed(self.paces.down, len(data))

    async def end(self) -> None:
        """Ends an answer's body."""
        await self._send(h11.EndOfMessage())

    async def answer(self, status: int, headers: Headers = (), body: bytes = b"", *, close: bool = False) -> None:
        """Sends a whole answer; with `close` the connection is not used again."""
        self._closing = self._closing or close
        fields = [*headers, ("Content-Length", str(len(body))), *self._closing_fields()]
        sent = b"" if self._method == "HEAD" else body
        await self._send(_response(status, fields), h11.Data(data=sent), h11.EndOfMessage())

    async def answer_json(self, status: int, value: Any) -> None:
        """Sends `value` as JSON."""
        body = json.dumps(value, separators=(",", ":")).encode()
        await self.answer(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")], body)

    async def become_flow(self) -> bytes:
        """Answers CONNECT with 200; returns what the peer has sent already, which belongs to the flow."""
        await self._send(_response(200, []))
        return bytes(self._h11.trailing_data[0])

    async def upgrade(self, headers: Headers) -> bytes:
        """Answers a request to upgrade with 101; returns what the peer has sent already, which is not HTTP any more.

        Raises `BadRequest` if the request has a body, or does not ask for an upgrade as HTTP/1.1 wants it.
        """
        if not isinstance(await self._event(), h11.EndOfMessage):
            raise BadRequest("an upgrade has no body")
        if self._h11.their_state is h11.DONE:
            raise BadRequest("this request cannot be upgraded")
        raw = [(_bytes(name), _bytes(value)) for name, value in headers]
        await self._send(h11.InformationalResponse(status_code=101, headers=raw, reason=b"Switching Protocols"))
        return bytes(self._h11.trailing_data[0])

    @property
    def answerable(self) -> bool:
        """Whether no answer to the present request has been begun."""
        return self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def next(self) -> bool:
        """Makes ready for another request; returns False where none can follow on this connection."""
        if self._h11.their_state is h11.SEND_BODY and not isinstance(self._h11.next_event(), h11.EndOfMessage):
            return False  # a body that no one asked for is still to come
        if self._closing or self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    async def close(self) -> None:
        """Ends the connection so that the peer gets our last answer even while it is still sending. Never raises.

        A socket closed with unread input resets the connection, and that would overtake the answer.
        """
        sock, loop = self.stream.sock, asyncio.get_running_loop()
        with suppress(ssl.SSLError):  # there may be input left, for which unwrap() has no use either
            self.stream.notify_close()
        with suppress(OSError, asyncio.TimeoutError), Deadline(_LINGER_SECONDS):
            await loop.sock_sendall(sock, self.stream.outgoing.read())
            sock.shutdown(SHUT_WR)
            while await loop.sock_recv(sock, _READ_BYTES):
                pass
        sock.close()

    def _closing_fields(self) -> Headers:
        return [("Connection", "close")] if self._closing else []

    async def _send(self, *events: h11.Event) -> None:
        try:
            await self.stream.write(b"".join(self._h11.send(event) or b"" for event in events))
        except h11.LocalProtocolError as error:
            raise ProtocolError(str(error)) from error

    async def _event(self) -> object:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self.stream.read(_READ_BYTES))
        except h11.RemoteProtocolError as error:
            raise BadRequest(str(error), error.error_status_hint) from error
        return event


def _response(status: int, headers: Headers) -> h11.Response:
    raw = [(_bytes(name), _bytes(value)) for name, value in headers]
    return h11.Response(status_code=status, headers=raw, reason=http.client.responses.get(status, ""))


def _bytes(text: str | bytes) -> bytes:
    return text.encode("ascii") if isinstance(text, str) else text
