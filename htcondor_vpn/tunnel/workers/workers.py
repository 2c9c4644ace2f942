"""The engine's workers: started, started again, and given each the flows that are its.

Everything but the relaying stays with the engine: which gateway a flow goes through, whether that works, and how it is
reached. A flow through a gateway is opened by the worker that will relay it, since a TLS connection cannot change
hands; any other one is opened here, and its two sockets are handed over. A worker that dies takes its own flows with
it, and no others; one that is stopped or stuck gets no new ones, and is killed when it stays so. Where there is none,
or none has room, flows are relayed here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Sequence

from htcondor_vpn.linux.children import fork_child
from htcondor_vpn.tunnel.carrier import Address, FarEnd
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections, Token
from htcondor_vpn.tunnel.carriers.server import Way
from htcondor_vpn.tunnel.workers.own_flows import OwnFlows, sum_of
from htcondor_vpn.tunnel.workers.process import RemoteFlow, WorkerLost, WorkerProcess
from htcondor_vpn.tunnel.workers.worker import TELL_SECONDS, Access, GatewayKey, work
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.traffic import Traffic
from htcondor_vpn.wire.trust import Trust

#: More would help nobody: one relays about 8 Gbit/s.
MOST = 4

_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.1, 5.0
#: A worker that served for so long did not fail at its start.
_STEADY_SECONDS = 10.0
_END_SECONDS = 2.0
#: After so many looks without a word workers are killed: a busy machine does not hold a process up for so long, and who
#: has a flow in a stopped one waits for so long until it is reset.
_MOST_LOOKS = 10
#: Of a worker, for its loop and what it keeps in reserve.
_SPARE_DESCRIPTORS = 128

log = logging.getLogger(__name__)


def worker_count(wanted: int) -> int:
    """How many workers there are to be; if `wanted` is 0, by the processor cores that this process may use."""
    count = wanted or min(len(os.sched_getaffinity(0)), MOST)
    return count if count > 1 else 0


class Workers:
    """So many processes, from `start` to `finish`; without them this process relays all flows itself."""

    def __init__(self, count: int = 0) -> None:
        self._count = count
        self._accesses: list[Access] = []
        self._ways: dict[GatewayKey, Way] = {}
        self.processes: list[WorkerProcess] = []
        self._own, self._before = OwnFlows(), Traffic()
        self._relayed = self._room = self._own_room = 0
        self._pause = _FIRST_PAUSE_SECONDS
        self._finishing = False
        self._looking: asyncio.TimerHandle | None = None

    @property
    def flows(self) -> int:
        """How many are relayed now."""
        return self._relayed

    @property
    def carried(self) -> Traffic:
        """What all flows have carried."""
        return sum_of(self._own.carried, self._before, *(process.carried for process in self.processes))

    @property
    def room(self) -> int:
        """How many flows there may be at once, by the descriptors of who relays them; known from `start` on."""
        return max(self._count * self._room, self._own_room)

    # Gateways

    def admit(self, trust: Trust, token: Token | None) -> None:
        """Lets workers use gateways that are known and know us by these; to be called before `start`."""
        self._accesses.append(Access(trust, token))

    def opener(self, connections: GatewayConnections) -> GatewayFlows:
        """Returns what opens flows through a gateway, to which `connections` are made as well."""
        access = self._accesses.index(Access(connections.trust, connections.token))
        key = GatewayKey(connections.host, connections.port, connections.address, access)
        self._ways[key] = connections.way
        return GatewayFlows(self, connections, key)

    # Flows

    async def relay(self, end: FarEnd, application: socket.socket, early: bytes) -> None:
        """As `wire.relay`, for whatever was opened."""
        self._relayed += 1
        try:
            if isinstance(end, PlainStream):
                end = self._handed_over(end, early)
            if isinstance(end, RemoteFlow):
                await end.relay(application)
            else:
                assert isinstance(end, (PlainStream, TlsStream))
                await self._own.relay(end, application, early)
        finally:
            self._relayed -= 1

    def _handed_over(self, stream: PlainStream, early: bytes) -> PlainStream | RemoteFlow:
        process = self.least_busy()
        if process is None:
            return stream
        try:
            return process.adopt(stream, early)
        except OSError as error:
            log.warning("a flow is not handed over: %s", error.strerror)
            return stream

    def least_busy(self) -> WorkerProcess | None:
        """The worker that answers with the fewest flows, if it has room for one more: each takes two descriptors."""
        answering = (process for process in self.processes if process.answers)
        least = min(answering, key=lambda process: process.flows, default=None)
        return least if least is not None and least.flows < self._room else None

    # Processes

    def start(self) -> None:
        """Starts them; the limit of descriptors is theirs from now on."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = sys.maxsize if limit == resource.RLIM_INFINITY else limit
        self._room, self._own_room = (limit - _SPARE_DESCRIPTORS) // 2, limit // 2
        for _ in range(self._count):
            self._start_one()
        self._look()

    def _look(self) -> None:
        for process in self.processes:
            process.look()
            if process.silent_looks == _MOST_LOOKS:
                log.error("worker %d is stopped or stuck, and killed", process.child.pid)
                process.kill()
        if self._count:
            self._looking = asyncio.get_running_loop().call_later(TELL_SECONDS, self._look)

    def _start_one(self) -> None:
        if self._finishing:
            return
        engine = os.getpid()
        try:
            child = fork_child("worker", lambda channel: work(self._accesses, engine, channel), ())
        except OSError as error:
            log.error("a worker cannot be started: %s", error.strerror)
            self._start_later()
            return
        self.processes.append(WorkerProcess(child, self._dial, self._over))

    def _start_later(self) -> None:
        asyncio.get_running_loop().call_later(self._pause, self._start_one)
        self._pause = min(2 * self._pause, _LAST_PAUSE_SECONDS)

    async def _dial(self, key: GatewayKey) -> socket.socket:
        return await self._ways[key].dial()

    def _over(self, process: WorkerProcess) -> None:
        self.processes.remove(process)
        self._before = sum_of(self._before, process.carried)
        if self._finishing:
            return
        status = process.ended.result()
        log.error("worker %d died (wait status %d), and with it its flows", process.child.pid, status)
        if process.age_seconds > _STEADY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        self._start_later()

    async def finish(self) -> None:
        """Ends them, and the flows that there still are."""
        self._finishing = True
        if self._looking is not None:
            self._looking.cancel()
        processes = list(self.processes)
        for process in processes:
            process.close()
        await _ended(processes)
        for process in self.processes:
            process.kill()
        await _ended(processes)


async def _ended(processes: Sequence[WorkerProcess]) -> None:
    if processes:
        await asyncio.wait([process.ended for process in processes], timeout=_END_SECONDS)


class GatewayFlows:
    """See `FlowOpener`: opens flows through one gateway, in workers."""

    def __init__(self, workers: Workers, connections: GatewayConnections, key: GatewayKey) -> None:
        self._workers, self._connections, self._key = workers, connections, key

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        try:
            return await self._open_flow(address, port)
        except WorkerLost:  # once more, and not for ever: it may be this flow that they do not survive
            return await self._open_flow(address, port)

    async def _open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        process = self._workers.least_busy()
        if process is None:
            return await self._connections.open_flow(address, port)
        return await process.open_flow(self._key, address, port), b""

    def forget(self) -> None:
        for process in self._workers.processes:
            process.forget(self._key)
