"""Lets a job chirp: its starter listens on a loopback that is not the job's, so the broker listens on the job's too."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from contextlib import suppress

from htcondor_vpn.condor.chirp import ChirpConfig, is_a_starters
from htcondor_vpn.linux.acceptor import Acceptor

log = logging.getLogger(__name__)

_CHUNK_BYTES = 64 << 10
_MOST_CONNECTIONS = 32
_ANSWER_SECONDS = 10.0

#: A request to write what the job is charged with, wherever it stands in what a job sends: what is data and what is a
#: request only the starter knows. Attributes' names have no case, and backslashes between letters say nothing.
_CHARGES = re.compile(rb"set_job_attr(?:_delayed)?\s+(?:Chirp)?Network", re.I)
_LONGEST_MATCH = 4096


class ChirpRelay:
    """Carries connections to a listening socket inside the job's namespace on to the starter. `close` it.

    What says where the starter listens is a file that the job's account may write: nothing is carried before the
    starter has shown that it knows the cookie, and so no other service on this loopback can be reached. Nor is a
    request by which a job would write its own account into its ad, in place of the broker: its connection ends.
    """

    def __init__(self, listener: socket.socket, starter: ChirpConfig) -> None:
        self._listener, self._starter = listener, starter
        self._pumps: set[asyncio.Task[None]] = set()
        self._known: asyncio.Future[bool] | None = None
        self._acceptor = Acceptor(listener, self._accepted)

    def close(self) -> None:
        """Stops listening and breaks the connections."""
        self._acceptor.close()
        self._listener.close()
        for pump in self._pumps:
            pump.cancel()
        if self._known is not None:
            self._known.cancel()

    def _accepted(self, connection: socket.socket) -> None:
        if len(self._pumps) >= _MOST_CONNECTIONS:
            log.warning("a job has %d chirp connections, no more are taken", len(self._pumps))
            connection.close()
            return
        pump = asyncio.ensure_future(self._carry(connection))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)

    async def _carry(self, connection: socket.socket) -> None:
        ends: list[asyncio.StreamWriter] = []
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            ends.append(writer)
            if not await self._starter_known():
                log.warning("port %d of %s is no starter's for chirp", self._starter.port, self._starter.host)
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(self._starter.host, self._starter.port)
            ends.append(far_writer)
            await asyncio.gather(_pump(_Requests(reader), far_writer), _pump(far_reader, writer))
            for end in ends:
                end.close()
        except (OSError, asyncio.CancelledError) as error:
            log.info("a job's chirp connection broke: %s", error or "the job has ended")
            for end in ends:
                end.transport.abort()
        finally:
            if not ends:
                connection.close()

    async def _starter_known(self) -> bool:
        if self._known is None:
            asked = asyncio.wait_for(is_a_starters(self._starter), _ANSWER_SECONDS)
            self._known = asyncio.ensure_future(asked)
        try:
            return await asyncio.shield(self._known)
        except asyncio.TimeoutError:
            return False


class _Requests:
    """What a job sends, read as a stream is; a request that is none of a job's business is an error."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._before = b""

    async def read(self, size: int) -> bytes:
        data = await self._reader.read(size)
        seen = self._before + data.replace(b"\\", b"")
        if _CHARGES.search(seen):
            raise PermissionError("the job would write into its ad what it is charged with")
        self._before = seen[-_LONGEST_MATCH:]
        return data


async def _pump(reader: asyncio.StreamReader | _Requests, writer: asyncio.StreamWriter) -> None:
    while True:
        data = await reader.read(_CHUNK_BYTES)
        if not data:
            if not writer.is_closing():
                with suppress(OSError):  # the other side has closed already, as starters do: it needs no end
                    writer.write_eof()
            return
        writer.write(data)
        await writer.drain()
