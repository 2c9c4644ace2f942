"""Carries one flow between two plain TCP sockets, by the same rules as `relay` does with TLS on one side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from htcondor_vpn.wire.receive_buffers import ReceiveBuffers
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.tls import CHUNK_BYTES, reset, reset_on_close
from htcondor_vpn.wire.traffic import Traffic

# Only ever used between two system calls of one thread, never across an await.
_scratch = memoryview(bytearray(CHUNK_BYTES))


class PlainFlow:
    """The flow between `stream` and `plain`; `finished` is done when both directions have ended, or one side is cut."""

    def __init__(self, stream: PlainStream, plain: socket.socket, traffic: Traffic) -> None:
        far = stream.sock
        self.loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self.loop.create_future()
        self.traffic = traffic
        for sock in (far, plain):
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # RFC 6093: urgent data stays in its place
                reset_on_close(sock, True)  # so that this process' sudden death is no clean end to the peer
        self._sockets = far, plain
        self.buffers = ReceiveBuffers(far, plain)
        self._half_closes = stream.half_closes
        self._inward = _Direction(self, far, plain)
        self._outward = _Direction(self, plain, far)

    def start(self, early: bytes) -> None:
        """Begins with what was read from the stream already."""
        self.buffers.open()
        self._outward.start()
        self._inward.start(early)

    def close(self) -> None:
        """Releases both sockets; cuts them unless both directions ended by themselves."""
        self.buffers.close()
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self.loop.remove_reader(sock)
                self.loop.remove_writer(sock)
        self.traffic.reset = not self._both_ended()
        for sock in self._sockets:
            if self.traffic.reset:
                reset(sock)
            else:
                if sock.family != socket.AF_UNIX:
                    reset_on_close(sock, False)
                sock.close()

    def guarded(self, step: Callable[[], None]) -> None:
        """Runs one step; an error of either socket ends the flow, and `close` resets the other one."""
        if self.finished.done():
            return
        try:
            step()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.finished.set_result(None)
        else:
            if self._both_ended():
                self.finished.set_result(None)
            self._count()

    def ending(self, direction: _Direction) -> None:
        """Raises ConnectionResetError where an end cannot be believed, since it may only be the echo of our own."""
        if direction is self._inward and self._outward.shut and not self._half_closes:
            raise ConnectionResetError("the proxy may have cut the answer")

    def _both_ended(self) -> bool:
        return self._inward.shut and self._outward.shut

    def _count(self) -> None:
        self.traffic.bytes_to_plain = self._inward.count
        self.traffic.bytes_from_plain = self._outward.count


class _Direction:
    """From `source` to `target`. While `target` takes no more, nothing is read."""

    def __init__(self, flow: PlainFlow, source: socket.socket, target: socket.socket) -> None:
        self._flow, self._source, self._target = flow, source, target
        self._waiting = memoryview(b"")
        self.count = 0
        self.shut = False

    def start(self, early: bytes = b"") -> None:
        self._watch()
        if early:
            self._flow.guarded(lambda: self._send(memoryview(early)))

    def _watch(self) -> None:
        self._flow.loop.add_reader(self._source, self._flow.guarded, self._readable)

    def _readable(self) -> None:
        self._flow.buffers.fit()
        count = self._source.recv_into(_scratch)
        if count:
            self._send(_scratch[:count])
        else:
            self._flow.loop.remove_reader(self._source)
            self._flow.ending(self)
            self._target.shutdown(socket.SHUT_WR)
            self.shut = True

    def _send(self, data: memoryview) -> None:
        self.count += len(data)
        try:
            sent = self._target.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._waiting = memoryview(bytes(data[sent:]))
            self._flow.loop.remove_reader(self._source)
            self._flow.loop.add_writer(self._target, self._flow.guarded, self._writable)

    def _writable(self) -> None:
        self._waiting = self._waiting[self._target.send(self._waiting) :]
        if not self._waiting:
            self._flow.loop.remove_writer(self._target)
            self._watch()
