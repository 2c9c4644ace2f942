"""The resolver inside the namespace: every question goes to the gateway as DNS over HTTPS (RFC 8484).

So names are resolved where connections are made, and the node's own name servers are never asked.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any

from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.fair_share import FairShare, FairTurns

_HEADER = struct.Struct("!6H")
_MAX_MESSAGE = 65535

#: How many questions are asked at once, shared likewise: the others wait, and nobody behind another one's.
_AT_ONCE = 128

#: How many questions by datagram may be unanswered, and how many streams open, shared fairly by who asks (an address:
#: a job's, or the pilot's). What is too much is dropped, or ended: it is asked again, after five seconds. Half of them
#: are what hundreds of programs ask together when a pilot starts.
_MAX_PENDING = 2048
_MAX_STREAMS = 512

#: How many datagrams are taken in one turn of the loop: who floods the resolver delays nothing else.
_TAKEN_AT_ONCE = 64
_ANSWER_SECONDS = 10.0
_QR, _RA, _TC, _SERVFAIL = 0x8000, 0x0080, 0x0200, 2
_OPT = 41
_PLAIN_UDP_BYTES = 512
_IDLE_SECONDS = 30

log = logging.getLogger(__name__)

#: Sends one DNS message (wire format) and returns the answer; raises OSError where the tunnel is down.
Exchange = Callable[[bytes], Awaitable[bytes]]


class DnsResponder:
    """Answers questions that come as datagrams or as streams (RFC 7766), with what `exchange` says."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._turns = FairTurns(_AT_ONCE)
        self._pending, self._streams = FairShare(_MAX_PENDING), FairShare(_MAX_STREAMS)
        self._tasks: set[asyncio.Task[None]] = set()

    def serve_datagrams(self, sock: socket.socket) -> None:
        """Starts to answer on a bound datagram socket."""
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock, self._datagrams, sock)

    def serve_stream(self, sock: socket.socket) -> None:
        """Answers on an accepted connection until its other side ends it."""
        try:
            asking = sock.getpeername()[:1]
        except OSError:  # it is gone already
            sock.close()
            return
        if self._streams.take(asking):
            self._start(self._stream(sock, asking), self._streams, asking)
        else:
            sock.close()

    def _start(self, work: Coroutine[Any, Any, None], share: FairShare, asking: Hashable) -> None:
        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            share.release(asking)

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(over)

    def _datagrams(self, sock: socket.socket) -> None:
        for _ in range(_TAKEN_AT_ONCE):
            try:
                query, peer = sock.recvfrom(_MAX_MESSAGE)
            except BlockingIOError:
                return
            asking = peer[:1]
            if len(query) >= _HEADER.size and self._pending.take(asking):
                self._start(self._datagram(sock, query, peer, asking), self._pending, asking)

    async def _datagram(self, sock: socket.socket, query: bytes, peer: Any, asking: Hashable) -> None:
        answer = await self._answer(query, asking)
        if len(answer) > udp_limit(query):
            answer = truncated(query, answer)
        try:
            sock.sendto(answer, peer)
        except OSError as error:
            log.debug("an answer could not be delivered: %s", error)  # who asked is gone

    async def _stream(self, sock: socket.socket, asking: Hashable) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            while True:
                (length,) = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), _IDLE_SECONDS))
                query = await asyncio.wait_for(reader.readexactly(length), _IDLE_SECONDS)
                if length < _HEADER.size:
                    return
                answer = await self._answer(query, asking)
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
        except (OSError, EOFError, asyncio.TimeoutError):
            return  # who asked is done
        finally:
            writer.close()

    async def _answer(self, query: bytes, asking: Hashable) -> bytes:
        try:
            with Deadline(_ANSWER_SECONDS):
                async with self._turns.turn(asking):
                    answer = await self._exchange(query)
            if not _HEADER.size <= len(answer) <= _MAX_MESSAGE:
                raise ValueError(f"an answer of {len(answer)} bytes is none")
        except Exception as error:
            log.info("a name could not be resolved: %s", error)
            return failed(query)
        return answer


def udp_limit(query: bytes) -> int:
    """How long an answer by datagram may be: as the query's OPT record says (RFC 6891), else 512 bytes."""
    try:
        _, _, questions, answers, authorities, additional = _HEADER.unpack_from(query)
        if answers or authorities or additional != 1:
            return _PLAIN_UDP_BYTES
        offset = _question_end(query, questions)
        kind, size = struct.unpack_from("!xHH", query, offset)
    except (struct.error, IndexError):
        return _PLAIN_UDP_BYTES
    return max(size, _PLAIN_UDP_BYTES) if kind == _OPT and query[offset] == 0 else _PLAIN_UDP_BYTES


def truncated(query: bytes, answer: bytes) -> bytes:
    """The head of `answer` with TC set, so that who asked comes again by TCP (RFC 1035, 4.2.1)."""
    ident, flags, questions, *_ = _HEADER.unpack_from(answer)
    try:
        question = answer[_HEADER.size : _question_end(answer, questions)]
    except IndexError:
        return failed(query)
    return _HEADER.pack(ident, flags | _TC, questions, 0, 0, 0) + question


def failed(query: bytes) -> bytes:
    """The answer SERVFAIL to `query`."""
    ident, flags, questions, *_ = _HEADER.unpack_from(query)
    try:
        question = query[_HEADER.size : _question_end(query, questions)]
    except IndexError:
        questions, question = 0, b""
    return _HEADER.pack(ident, flags & ~_TC | _QR | _RA | _SERVFAIL, questions, 0, 0, 0) + question


def question_name(query: bytes) -> tuple[bytes, ...]:
    """The labels of the name that is asked for, in lower case; none for the root, or for no proper question."""
    labels, offset = [], _HEADER.size
    while length := query[offset] if offset < len(query) else 0:
        labels.append(query[offset + 1 : offset + 1 + length].lower())
        offset += 1 + length
    return tuple(labels)


def _question_end(message: bytes, questions: int) -> int:
    """Where the question section ends; names there are not compressed. Raises IndexError."""
    offset = _HEADER.size
    for _ in range(questions):
        while message[offset]:
            offset += message[offset] + 1
        offset += 5
    if offset > len(message):
        raise IndexError("the question is cut short")
    return offset
