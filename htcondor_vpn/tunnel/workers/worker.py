"""A worker's own side: it opens flows through gateways for the engine, and relays these and others.

What the engine tells it, where a flow has a `number` that the engine gave it, and `gateway` is a `GatewayKey`:

| message | with it | means |
|---|---|---|
| {"open": number, "gateway", "to": [address, port]} | | open a flow, and say {"opened": number} |
| {"relay": number} | the application's connection | relay a flow |
| {"adopt": number, "half_closes"} | the far side's connection, what that has sent | a flow that the engine has opened |
| {"cut": number} | | cut a flow, or give up opening it |
| {"forget": gateway} | | the gateway was lost |
| {"dialled": number} | a connection to the gateway | the answer to {"dial": number, "gateway"}; or why it "failed" |

It says {"ended": number} of each flow, and why it "failed" if it could not be opened; while it has any, {"lives": true}
every second; and with these {"carried": [bytes in, bytes out]}, of all flows since it was started.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

from htcondor_vpn.linux.async_channel import AsyncChannel
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections, Token
from htcondor_vpn.tunnel.carriers.segments import Segments
from htcondor_vpn.tunnel.workers.own_flows import OwnFlows
from htcondor_vpn.tunnel.workers.told_errors import OPENING_ERRORS, heard, told
from htcondor_vpn.wire.stream import PlainStream, Stream
from htcondor_vpn.wire.tls import reset
from htcondor_vpn.wire.trust import Trust

#: The engine counts on it: see `WorkerProcess.look`.
TELL_SECONDS = 1.0
_CANCEL_SECONDS = 0.5

log = logging.getLogger(__name__)


class Access(NamedTuple):
    """How to know a gateway, and how to be known by it."""

    trust: Trust
    token: Token | None


class GatewayKey(NamedTuple):
    """A gateway, between engine and worker: see `GatewayConnections`; `access` is the number of an `Access`."""

    host: str
    port: int
    address: str
    access: int


def work(accesses: Sequence[Access], engine_pid: int, channel: Channel) -> None:
    """Serves the engine until it is gone, or has closed the channel. Run in a forked child."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() == engine_pid:
        asyncio.new_event_loop().run_until_complete(_serve(accesses, channel))


async def _serve(accesses: Sequence[Access], channel: Channel) -> None:
    worker = _Worker(accesses, channel)
    await worker.over
    if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


class _Flow:
    """From its opening to its end; `application` becomes the application's connection."""

    def __init__(self) -> None:
        self.application: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self.failed: dict[str, Any] | None = None
        self.task: asyncio.Task[None]


class _Worker:
    def __init__(self, accesses: Sequence[Access], channel: Channel) -> None:
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._accesses, self._gateways = accesses, dict[GatewayKey, GatewayConnections]()
        self._flows: dict[int, _Flow] = {}
        self._relayed = OwnFlows()
        self._telling: asyncio.TimerHandle | None = None
        self._said = [0, 0]
        self._dialling: dict[int, asyncio.Future[socket.socket]] = {}
        self._dials = itertools.count()
        self._engine = AsyncChannel(channel, self._hear, lambda: self.over.set_result(None))

    def _hear(self, message: dict[str, Any], descriptors: list[int]) -> None:
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors[:1]]
        early = _content(descriptors[1]) if len(descriptors) > 1 else b""
        if "open" in message:
            flow = _Flow()
            self._start(message["open"], flow, self._open(message["open"], flow, message["gateway"], *message["to"]))
        elif "adopt" in message and sockets:
            flow = _Flow()
            stream = PlainStream(sockets.pop(), half_closes=message["half_closes"])
            self._start(message["adopt"], flow, self._relay(flow, stream, early))
        elif "relay" in message and sockets and (known := self._flows.get(message["relay"])) is not None:
            known.application.set_result(sockets.pop())
        elif "dialled" in message:
            self._dialled(message, sockets)
        elif "forget" in message:
            if (gateway := self._gateways.pop(GatewayKey(*message["forget"]), None)) is not None:
                gateway.forget()
        elif (number := message.get("cut", message.get("relay", message.get("adopt")))) is not None:
            # Also where descriptors did not arrive, since this process has none left.
            if (known := self._flows.get(number)) is not None:
                known.task.cancel()
            else:
                self._engine.send({"ended": number})
        for sock in sockets:
            reset(sock)

    # Flows

    def _start(self, number: int, flow: _Flow, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            del self._flows[number]
            self._tell({"ended": number, **({"failed": flow.failed} if flow.failed else {})})
            if not task.cancelled() and task.exception() is not None:
                log.error("a flow failed", exc_info=task.exception())

        self._flows[number] = flow
        flow.task = asyncio.ensure_future(work)
        flow.task.add_done_callback(ended)
        if self._telling is None:
            self._telling = self._loop.call_later(TELL_SECONDS, self._tell_again)

    async def _open(self, number: int, flow: _Flow, gateway: Sequence[Any], address: str, port: int) -> None:
        try:
            stream, early = await self._gateway(gateway).open_flow(ip_address(address), port)
        except OPENING_ERRORS as error:
            flow.failed = told(error)
            return
        self._engine.send({"opened": number})
        await self._relay(flow, stream, early)

    async def _relay(self, flow: _Flow, stream: Stream, early: bytes) -> None:
        try:
            await self._relayed.relay(stream, await flow.application, early)
        finally:
            stream.abort()
            if flow.application.done() and not flow.application.cancelled():
                reset(flow.application.result())

    def _tell_again(self) -> None:
        self._tell({"lives": True})
        self._telling = self._loop.call_later(TELL_SECONDS, self._tell_again) if self._flows else None

    def _tell(self, message: dict[str, Any]) -> None:
        """Sends a message, and what was carried if that has changed."""
        carried = self._relayed.carried
        sums = [carried.bytes_to_plain, carried.bytes_from_plain]
        if sums != self._said:
            message["carried"] = self._said = sums
        self._engine.send(message)

    # Gateways

    def _gateway(self, said: Sequence[Any]) -> GatewayConnections:
        key = GatewayKey(*said)
        if key not in self._gateways:
            access = self._accesses[key.access]
            way = _ByEngine(self, key)
            self._gateways[key] = GatewayConnections(key.host, key.port, *access, way, key.address)
        return self._gateways[key]

    async def dial(self, key: GatewayKey) -> socket.socket:
        """Has the engine connect to a gateway: names, proxies and the like are its business."""
        number, future = next(self._dials), self._loop.create_future()
        self._dialling[number] = future
        self._engine.send({"dial": number, "gateway": key})
        try:
            connection: socket.socket = await future
        finally:
            del self._dialling[number]
        return connection

    def _dialled(self, message: dict[str, Any], sockets: list[socket.socket]) -> None:
        future = self._dialling.get(message["dialled"])
        if future is None or future.done():
            return  # nobody wants it any more
        if "failed" in message:
            future.set_exception(heard(message["failed"]))
        elif sockets:
            future.set_result(sockets.pop())
        else:
            future.set_exception(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))


class _ByEngine:
    """See `Way`."""

    def __init__(self, worker: _Worker, key: GatewayKey) -> None:
        self._worker, self._key = worker, key
        self.segments = Segments(key.host)

    async def dial(self) -> socket.socket:
        return await self._worker.dial(self._key)

    def forget(self) -> None:
        """The engine has done so."""


def _content(descriptor: int) -> bytes:
    """What a file in memory holds; closes it."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()
