"""Carries one flow between a TLS connection, or a plain one (`relay_plain`), and a plain TCP socket, faithfully.

Each direction ends on its own (half-close), a reset on either side is a reset on the other, and a reader that stalls
stops its writer and nobody else. All flows of a loop share two scratch buffers: only what a slow reader has not taken
yet is kept per flow.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from htcondor_vpn.wire.pace import FREE, Paces
from htcondor_vpn.wire.receive_buffers import ReceiveBuffers
from htcondor_vpn.wire.relay_plain import PlainFlow
from htcondor_vpn.wire.silence import done_or_silent
from htcondor_vpn.wire.stream import Stream
from htcondor_vpn.wire.tls import CHUNK_BYTES, TlsStream, reset, reset_on_close
from htcondor_vpn.wire.traffic import Traffic

__all__ = ["Traffic", "relay"]

# Only ever used between two system calls of one thread, never across an await. The plaintext of one chunk may be joined
# by that of a record whose first part came with the chunk before.
_scratch = memoryview(bytearray(CHUNK_BYTES))
_plaintext = memoryview(bytearray(CHUNK_BYTES + 32 * 1024))

#: What the flows of a process may read at once, all together: it bounds the memory that their buffers take, and makes
#: the turns of many flows equal. OpenSSL's buffers keep the size that they once had.
_AT_ONCE_BYTES = 32 * 1024 * 1024
_LEAST_BYTES = 32 * 1024


def _chunk_bytes() -> int:
    return max(_LEAST_BYTES, min(CHUNK_BYTES, _AT_ONCE_BYTES // max(1, ReceiveBuffers.live)))


async def relay(
    stream: Stream, plain: socket.socket, early: bytes = b"", traffic: Traffic | None = None, paces: Paces = FREE
) -> Traffic:
    """Relays until both directions have ended or either side is reset; both sockets are closed afterwards.

    `early` is payload that was read from `stream` already. `traffic`, if given, is counted up while the flow runs.
    `paces` bound how fast it is read, where `stream` is a TLS connection.
    Being cancelled cuts the flow: both peers see a reset; and so does a peer that vanished without a word.
    """
    traffic = traffic or Traffic()
    flow: _TlsFlow | PlainFlow
    if isinstance(stream, TlsStream):
        flow = _TlsFlow(stream, plain, traffic, paces)
    else:
        flow = PlainFlow(stream, plain, traffic)
    try:
        flow.start(early)
        await done_or_silent(flow.finished, (stream.sock, plain))
    finally:
        flow.close()
    return traffic


class _TlsFlow:
    """The two directions: `tls` to `plain` (decrypting), and `plain` to `tls` (encrypting)."""

    def __init__(self, stream: TlsStream, plain: socket.socket, traffic: Traffic, paces: Paces) -> None:
        self.loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self.loop.create_future()
        self.stream, self.tls_sock, self.plain = stream, stream.sock, plain
        self.traffic = traffic
        self.up, self.down = paces
        self.up_waits = self.down_waits = False  # for its turn, by its pace
        self.to_plain: memoryview | None = None  # decrypted, not yet taken by the plain side
        self.to_tls: memoryview | None = None  # encrypted, not yet taken by the TLS side's socket
        self.tls_ended = self.plain_ended = False  # that side will send no more
        self.plain_shut = self.tls_shut = False  # and we have told the other side so
        self.buffers = ReceiveBuffers(self.tls_sock, plain)
        plain.setblocking(False)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # RFC 6093: urgent data stays in its place
        reset_on_close(plain, True)  # so that this process' sudden death is no clean end to the peer

    def start(self, early: bytes) -> None:
        self.buffers.open()
        self.loop.add_reader(self.tls_sock, self._guarded, self._tls_readable)
        self.loop.add_reader(self.plain, self._guarded, self._plain_readable)
        _plaintext[: len(early)] = early
        self._guarded(lambda: self._decrypt(len(early)))  # and what came in one piece with the head of the message

    def close(self) -> None:
        """Releases both sockets; cuts them unless both directions ended by themselves."""
        self.buffers.close()
        self.finished.cancel()  # so that a turn that comes now is none
        for sock in (self.tls_sock, self.plain):
            if sock.fileno() >= 0:
                self.loop.remove_reader(sock)
                self.loop.remove_writer(sock)
        if self.plain_shut and self.tls_shut:
            reset_on_close(self.plain, False)
            self.tls_sock.close()
            self.plain.close()
        else:
            self.traffic.reset = True
            reset(self.tls_sock)
            reset(self.plain)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Runs one step; an error of either socket ends the flow, and `close` resets the other one."""
        if self.finished.done():
            return
        try:
            step()
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ssl.SSLError):
            self.finished.set_result(None)
        else:
            if self.plain_shut and self.tls_shut:
                self.finished.set_result(None)

    # TLS to plain

    def _tls_readable(self) -> None:
        self.buffers.fit()
        room = _chunk_bytes()
        if self.up is not None:
            room = 0 if self.up_waits else min(room, self.up.room(self._up_again))
            if not room:
                self.up_waits = True
                self.loop.remove_reader(self.tls_sock)
                return
        count = self.tls_sock.recv_into(_scratch, room)
        if count == 0:
            if not self.tls_ended:
                raise ConnectionResetError("the connection ended without close_notify")
            self.loop.remove_reader(self.tls_sock)
            return
        if self.tls_ended:
            return  # what comes behind close_notify is ignored (RFC 8446, 6.1), and must not be kept
        self.stream.incoming.write(_scratch[:count])
        self._decrypt()

    def _up_again(self) -> None:
        self.up_waits = False
        if not self.finished.done() and self.to_plain is None:
            self.loop.add_reader(self.tls_sock, self._guarded, self._tls_readable)
            self._guarded(self._tls_readable)

    def _decrypt(self, count: int = 0) -> None:
        """Decrypts all that has come, so that `incoming` holds at most a part of a record afterwards.

        `count` bytes stand at the start of the scratch buffer already.
        """
        read, room = self.stream.tls.read, len(_plaintext)
        try:
            while not self.tls_ended:  # once for each record of 16 KiB
                got: int = read(room - count, _plaintext[count:])  # type: ignore[assignment]
                self.tls_ended = got == 0
                count += got
        except ssl.SSLWantReadError:
            pass  # all of it
        except ssl.SSLZeroReturnError:
            self.tls_ended = True
        if self.to_tls is not None:
            self.stream.bound_answers()
        elif self.stream.outgoing.pending:
            self._send_to_tls()
        if count:
            self.traffic.bytes_to_plain += count
            if self.up is not None:
                self.up.spend(count)
            self._send_to_plain(_plaintext[:count])
        elif self.tls_ended:
            self._shut_plain()

    def _send_to_plain(self, data: memoryview) -> None:
        if self.to_plain is not None:
            raise AssertionError("more was read than the reader has room for")
        try:
            sent = self.plain.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.to_plain = memoryview(bytes(data[sent:]))
            self.loop.remove_reader(self.tls_sock)
            self.loop.add_writer(self.plain, self._guarded, self._plain_writable)
        elif self.tls_ended:
            self._shut_plain()

    def _plain_writable(self) -> None:
        assert self.to_plain is not None
        self.to_plain = self.to_plain[self.plain.send(self.to_plain) :]
        if self.to_plain:
            return
        self.to_plain = None
        self.loop.remove_writer(self.plain)
        if self.tls_ended:
            self._shut_plain()
        else:
            self.loop.add_reader(self.tls_sock, self._guarded, self._tls_readable)

    def _shut_plain(self) -> None:
        if not self.plain_shut and self.to_plain is None:
            self.plain.shutdown(socket.SHUT_WR)
            self.plain_shut = True

    # Plain to TLS

    def _down_again(self) -> None:
        self.down_waits = False
        if not self.finished.done() and self.to_tls is None and not self.plain_ended:
            self.loop.add_reader(self.plain, self._guarded, self._plain_readable)
            self._guarded(self._plain_readable)

    def _plain_readable(self) -> None:
        self.buffers.fit()
        room = _chunk_bytes()
        if self.down is not None:
            room = 0 if self.down_waits else min(room, self.down.room(self._down_again))
            if not room:
                self.down_waits = True
                self.loop.remove_reader(self.plain)
                return
        count = self.plain.recv_into(_scratch, room)
        if count == 0:
            self.plain_ended = True
            self.loop.remove_reader(self.plain)
            self.stream.notify_close()
        else:
            self.traffic.bytes_from_plain += count
            if self.down is not None:
                self.down.spend(count)
            self.stream.tls.write(_scratch[:count])
        if self.to_tls is None:
            self._send_to_tls()

    def _send_to_tls(self) -> None:
        data = memoryview(self.stream.outgoing.read())
        try:
            sent = self.tls_sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.to_tls = data[sent:]
            self.loop.remove_reader(self.plain)
            self.loop.add_writer(self.tls_sock, self._guarded, self._tls_writable)
        elif self.plain_ended:
            self._shut_tls()

    def _tls_writable(self) -> None:
        assert self.to_tls is not None
        self.to_tls = self.to_tls[self.tls_sock.send(self.to_tls) :]
        if self.to_tls:
            return
        self.to_tls = None
        self.loop.remove_writer(self.tls_sock)
        if self.stream.outgoing.pending:
            self._send_to_tls()
        elif self.plain_ended:
            self._shut_tls()
        if self.to_tls is None and not self.plain_ended:
            self.loop.add_reader(self.plain, self._guarded, self._plain_readable)

    def _shut_tls(self) -> None:
        # close_notify was the end of this direction. TCP's own comes with `close`: a proxy on the way may take the end
        # of one direction for that of both (squid does).
        self.tls_shut = True
