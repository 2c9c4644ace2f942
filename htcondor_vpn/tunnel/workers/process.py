"""One worker, as the engine sees it (what they tell each other: `worker`)."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from htcondor_vpn.linux.async_channel import AsyncChannel
from htcondor_vpn.linux.children import Child
from htcondor_vpn.tunnel.carrier import Address, CarrierBusy
from htcondor_vpn.tunnel.carriers.gateway_connections import CONNECT_SECONDS, FLOW_SECONDS
from htcondor_vpn.tunnel.workers.told_errors import OPENING_ERRORS, heard, told
from htcondor_vpn.tunnel.workers.worker import GatewayKey
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.tls import reset, reset_on_close
from htcondor_vpn.wire.traffic import Traffic

_OPEN_SECONDS = 2 * CONNECT_SECONDS + FLOW_SECONDS
#: After so many looks without a word in between, a worker gets no new flows.
_SILENT_LOOKS = 3

#: Connects to a gateway; raises as `Way.dial`.
Dial = Callable[[GatewayKey], Awaitable[socket.socket]]


class WorkerLost(CarrierBusy):
    """The worker that was opening a flow died, or does not answer."""


class RemoteFlow:
    """A flow that a worker has; see `FarEnd`."""

    def __init__(self, process: WorkerProcess, number: int, kept: socket.socket | None = None) -> None:
        self._process, self.number, self.kept = process, number, kept
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    async def relay(self, application: socket.socket) -> None:
        """As `wire.relay` does, with a flow that was opened."""
        await self._process.relay(self, application)

    def abort(self) -> None:
        self._process.cut(self)


class WorkerProcess:
    """A running worker. `dial` makes the connections that it asks for, and `over` is called at its end, once."""

    def __init__(self, child: Child, dial: Dial, over: Callable[[WorkerProcess], None]) -> None:
        self.child, self.carried, self._born = child, Traffic(), time.monotonic()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._dial, self._over = dial, over
        self._flows: dict[int, RemoteFlow] = {}
        self._numbers = itertools.count()
        self._dialling: set[asyncio.Task[None]] = set()
        #: How often it was looked at since it last said anything.
        self.silent_looks = 0
        self._channel = AsyncChannel(child.channel, self._hear, lambda: None)  # the end comes by the pidfd
        asyncio.get_running_loop().add_reader(child.pidfd, self._reap)

    @property
    def flows(self) -> int:
        """How many it has, those that it is opening too."""
        return len(self._flows)

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self._born

    @property
    def answers(self) -> bool:
        """Whether it does, as far as is known: one that is stopped or stuck, and has flows, does not."""
        return self.silent_looks < _SILENT_LOOKS

    def look(self) -> None:
        """Takes note of its silence; to be called every `TELL_SECONDS`, since so often it says that it lives.

        It does while it has flows, and after the last it says that that has ended. Looks are counted, not seconds: when
        a whole pilot was stopped and goes on, nobody has been silent for long.
        """
        if self._flows or self.silent_looks:
            self.silent_looks += 1
        if not self.answers:  # what it was to open, another one can
            for flow in [flow for flow in self._flows.values() if not flow.opened.done()]:
                self.cut(flow)

    async def open_flow(self, key: GatewayKey, address: Address, port: int) -> RemoteFlow:
        """Has it open a flow through a gateway; raises `WorkerLost`, and as `Carrier.open_flow`."""
        flow = self._begin()
        self._channel.send({"open": flow.number, "gateway": key, "to": [str(address), port]})
        try:
            with Deadline(_OPEN_SECONDS):
                await flow.opened
        except BaseException:
            flow.abort()
            raise
        return flow

    def adopt(self, stream: PlainStream, early: bytes) -> RemoteFlow:
        """Gives it a flow that was opened here; raises OSError where nothing was done.

        The far side's socket is kept open here as well: its maker may want to cut it, or to know whether there are any.
        """
        far = os.dup(stream.sock.fileno())
        try:
            files = [_file_of(early)] if early else []
        except OSError:
            os.close(far)
            raise
        flow = self._begin(stream.sock)
        self._channel.send({"adopt": flow.number, "half_closes": stream.half_closes}, [far, *files])
        flow.opened.set_result(None)
        return flow

    async def relay(self, flow: RemoteFlow, application: socket.socket) -> None:
        """Has it relay a flow until its end."""
        if flow.ended.done():
            reset(application)
            return
        with suppress(OSError):  # its worker may never take it
            reset_on_close(application, True)
        self._channel.send({"relay": flow.number}, [application.detach()])
        try:
            await flow.ended
        finally:
            self.cut(flow)

    def forget(self, key: GatewayKey) -> None:
        """Has it forget what it keeps of a gateway that was lost."""
        self._channel.send({"forget": key})

    def cut(self, flow: RemoteFlow) -> None:
        """Has it cut a flow, or give up opening it."""
        if self._flows.pop(flow.number, None) is not None:
            self._channel.send({"cut": flow.number})
            _lost(flow)

    def close(self) -> None:
        """Ends it, and its flows; `ended` is done when it has ended."""
        self._channel.close()

    def kill(self) -> None:
        """Ends it at once, be it stopped; `ended` is done soon afterwards."""
        with suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGKILL)

    def _begin(self, kept: socket.socket | None = None) -> RemoteFlow:
        flow = RemoteFlow(self, next(self._numbers), kept)
        self._flows[flow.number] = flow
        return flow

    def _hear(self, message: dict[str, Any], _: list[int]) -> None:
        self.silent_looks = 0
        if "carried" in message:
            self.carried = Traffic(*message["carried"])
        if "dial" in message:
            task = asyncio.ensure_future(self._dialled(message["dial"], GatewayKey(*message["gateway"])))
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)
        elif "opened" in message and (flow := self._flows.get(message["opened"])) is not None:
            if not flow.opened.done():  # else it is being given up
                flow.opened.set_result(None)
        elif "ended" in message and (flow := self._flows.pop(message["ended"], None)) is not None:
            if flow.kept is not None:
                flow.kept.close()  # a reset if it was one there: the option that makes it so is the socket's
            _ended(flow, heard(message["failed"]) if "failed" in message else None)

    async def _dialled(self, number: int, key: GatewayKey) -> None:
        try:
            with Deadline(CONNECT_SECONDS):
                connection = await self._dial(key)
        except OPENING_ERRORS as error:
            self._channel.send({"dialled": number, "failed": told(error)})
        else:
            self._channel.send({"dialled": number}, [connection.detach()])

    def _reap(self) -> None:
        """Takes note of its end, and of its last words before."""
        asyncio.get_running_loop().remove_reader(self.child.pidfd)
        while self._channel.read():
            pass
        self._channel.close()
        for task in self._dialling:
            task.cancel()
        while self._flows:
            _lost(self._flows.popitem()[1])
        self.ended.set_result(self.child.reap())
        self._over(self)


def _lost(flow: RemoteFlow) -> None:
    if flow.kept is not None:
        reset(flow.kept)
    _ended(flow)


def _ended(flow: RemoteFlow, why: Exception | None = None) -> None:
    if not flow.ended.done():
        flow.ended.set_result(None)
    if not flow.opened.done():
        lost = WorkerLost("the process that was opening the flow died or does not answer", "it is started again")
        flow.opened.set_exception(why or lost)
        flow.opened.exception()  # who has asked may be gone


def _file_of(data: bytes) -> int:
    """A file in memory that holds `data`: a message is too small for it."""
    descriptor = os.memfd_create("early")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return descriptor
