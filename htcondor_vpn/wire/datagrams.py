"""UDP payloads both ways: what a way for them is (`DatagramPipe`), and the one over a TLS connection, as capsules.

What TCP cannot take at once waits in a queue of bounded size, and what does not fit is dropped, as on any full link: a
slow connection delays nobody but itself, and itself not for long.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import Optional, Protocol

from htcondor_vpn.wire.capsules import (
    DATAGRAM,
    PORT_UNREACHABLE,
    CapsuleDecoder,
    encode,
    encode_payload,
)
from htcondor_vpn.wire.http import ProtocolError
from htcondor_vpn.wire.silence import Silence
from htcondor_vpn.wire.tls import TlsStream

#: HTTP's upgrade token (RFC 9298, section 3.2), and its default template (section 2).
PROTOCOL = "connect-udp"
TARGET_PREFIX = "/.well-known/masque/udp/"

#: What may wait for TCP: in our queue, and in the kernel's, which would otherwise grow to megabytes. Bytes.
_MAX_QUEUED_BYTES = 256 * 1024
_SEND_BUFFER_BYTES = 256 * 1024
_READ_BYTES = 256 * 1024

#: Who sends datagrams does not wait for a connection that nobody answers any more, when another one might carry them.
_SILENT_SECONDS = 5.0
#: How often one should look (`DatagramPipe.ended`).
LOOK_SECONDS = 5.0


#: Is called with each payload that arrives, with None where the far side's port is unreachable.
Take = Callable[[Optional[bytes]], object]


class DatagramPipe(Protocol):
    """A way for the datagrams between two ends; see `CapsulePipe` and `UdpPipe`."""

    #: When a datagram passed last, of the monotonic clock.
    last: float

    def start(self, take: Take) -> None:
        """Begins to receive."""

    def send(self, payload: bytes) -> bool:
        """Sends a datagram, or drops it and returns False."""

    async def ended(self, timeout_seconds: float) -> bool:
        """Waits until it carries nothing more; returns False if the time is over before.

        Only who waits again every `LOOK_SECONDS` hears soon that the way was lost without a word.
        """

    def end(self) -> None:
        """Has `ended` return as soon as what is queued has been sent."""

    def close(self) -> None:
        """Releases it, also if it was never started. Idempotent."""


class CapsulePipe:
    """See `DatagramPipe`. Owns `stream`, of which `early` was read already."""

    def __init__(self, stream: TlsStream, early: bytes = b"") -> None:
        self._stream, self._sock, self._early = stream, stream.sock, early
        self._take: Take = _ignore
        self._loop = asyncio.get_running_loop()
        self._decoder = CapsuleDecoder()
        self._plain = bytearray()  # capsules that are not encrypted yet
        self._cipher = memoryview(b"")  # what TCP has not taken yet
        self._flushing = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.last = time.monotonic()
        self._clean = self._ending = False
        self._silence = Silence(self._sock)

    def start(self, take: Take) -> None:
        self._take = take
        self._loop.add_reader(self._sock, self._guarded, self._readable)
        early, self._early = self._early, b""
        self._guarded(lambda: self._start(early))

    def _start(self, early: bytes) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._decrypt(early)

    def send(self, payload: bytes) -> bool:
        return self._queue(encode_payload(payload))

    def send_unreachable(self) -> bool:
        """Tells that the far side's port is unreachable."""
        return self._queue(encode(PORT_UNREACHABLE))

    @property
    def broken(self) -> bool:
        """Whether the connection ended otherwise than by the peer's close_notify."""
        return self._ended.done() and not self._clean

    async def ended(self, timeout_seconds: float) -> bool:
        """Waits until the connection has ended, `broken` or not: also by its peer's silence, as far as one looks."""
        done, _ = await asyncio.wait([self._ended], timeout=timeout_seconds)
        if not done and self._silence.seconds() >= _SILENT_SECONDS:
            self._ended.set_result(None)
        return self._ended.done()

    def end(self) -> None:
        self._ending = True
        self._guarded(self._flush)

    def close(self) -> None:
        """Closes: the peer sees a clean end, or a reset if the connection is broken or not all could be sent."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self.broken or self._plain or self._cipher:
            self._stream.abort()
            return
        try:
            self._stream.notify_close()
            self._sock.send(self._stream.outgoing.read())
        except (OSError, ssl.SSLError):
            self._stream.abort()
        else:
            self._sock.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        if self._ended.done():
            return
        try:
            step()
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ssl.SSLError, ProtocolError):
            self._ended.set_result(None)

    def _finish(self) -> None:
        self._clean = True
        if not self._ended.done():
            self._ended.set_result(None)

    # To the peer

    def _queue(self, capsule: bytes) -> bool:
        if len(self._plain) + len(self._cipher) + len(capsule) > _MAX_QUEUED_BYTES or self._ended.done():
            return False
        self.last = time.monotonic()
        self._plain += capsule
        if not self._flushing:  # what else there is in this turn of the loop goes with it
            self._flushing = True
            self._loop.call_soon(self._guarded, self._flush)
        return True

    def _flush(self) -> None:
        self._flushing = False
        if self._sock.fileno() < 0 or self._cipher:
            return
        if self._plain:
            self._stream.tls.write(self._plain)
            self._plain = bytearray()
        self._cipher = memoryview(self._stream.outgoing.read())
        self._send()
        if self._cipher:
            self._loop.add_writer(self._sock, self._guarded, self._writable)
        elif self._ending:
            self._finish()

    def _send(self) -> None:
        if self._cipher:
            try:
                self._cipher = self._cipher[self._sock.send(self._cipher) :]
            except BlockingIOError:
                return

    def _writable(self) -> None:
        self._send()
        if not self._cipher:
            self._loop.remove_writer(self._sock)
            self._flush()

    # From the peer

    def _readable(self) -> None:
        data = self._sock.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the connection ended without close_notify")
        self._stream.incoming.write(data)
        self._decrypt(b"")

    def _decrypt(self, early: bytes) -> None:
        pieces = [early]
        try:
            while piece := self._stream.tls.read(_READ_BYTES):
                pieces.append(piece)
            self._clean = True
        except ssl.SSLWantReadError:
            pass  # all of it
        except ssl.SSLZeroReturnError:
            self._clean = True
        if self._cipher:
            self._stream.bound_answers()
        elif self._stream.outgoing.pending:
            self._flush()
        for kind, value in self._decoder.feed(b"".join(pieces)):
            if kind == DATAGRAM:
                self.last = time.monotonic()
            self._take(value if kind == DATAGRAM else None)
        if self._clean:
            self._finish()


def _ignore(_payload: bytes | None) -> None:
    """What arrives before `start` is for nobody."""
