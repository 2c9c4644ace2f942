"""Lets a job ask a name server on its host's loopback (127.0.0.53, a dnsmasq): the broker listens on the job's too.

Each question goes out from a socket of its own, and what comes back goes to who asked. The same for TCP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

from htcondor_vpn.linux.acceptor import Acceptor

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0
_MOST_QUESTIONS = 256
_LONGEST_MESSAGE = 65535
_CHUNK_BYTES = 64 << 10


class NameRelay:
    """Serves two bound sockets inside a job's namespace, of datagrams and one that listens. `close` it."""

    def __init__(self, datagrams: socket.socket, streams: socket.socket, server: str) -> None:
        self._datagrams, self._streams, self._server = datagrams, streams, server
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_reader(datagrams.fileno(), self._ask)
        self._acceptor = Acceptor(streams, self._accepted)

    def close(self) -> None:
        """Stops serving. May be repeated."""
        self._acceptor.close()
        self._streams.close()
        if self._datagrams.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._datagrams.fileno())
            self._datagrams.close()
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ask(self) -> None:
        try:
            question, who = self._datagrams.recvfrom(_LONGEST_MESSAGE)
        except OSError:
            return
        if len(self._tasks) < _MOST_QUESTIONS:  # the job asks again
            self._start(self._answer(question, who))

    async def _answer(self, question: bytes, who: Any) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._server else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            try:
                sock.connect((self._server, 53))
                sock.send(question)
                answer = await asyncio.wait_for(loop.sock_recv(sock, _LONGEST_MESSAGE), _ANSWER_SECONDS)
                self._datagrams.sendto(answer, who)
            except (OSError, asyncio.TimeoutError) as error:
                log.info("the name server %s does not answer: %s", self._server, error or "in time")

    def _accepted(self, connection: socket.socket) -> None:
        if len(self._tasks) >= _MOST_QUESTIONS:
            connection.close()
            return
        self._start(self._carry(connection))

    async def _carry(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._server, 53)
        except OSError as error:
            log.info("the name server %s cannot be reached: %s", self._server, error)
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:
            log.debug("a connection to the name server %s broke", self._server)
        finally:
            writer.close()
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
