"""A network namespace of its own for a packet VPN's tun device, beside the inner one.

Applications never see it. The engine, which stays where it is, opens their flows and datagrams with sockets that were
made in here: what they send goes into the tun and nowhere else, as there is nothing else. What is not routed into it is
unreachable, by the kernel's own word. A VPN that reconnects with the addresses it had keeps the device, and so the
flows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections import defaultdict, deque
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Union
from weakref import WeakSet

from htcondor_vpn.errors import LimitReached, by_name
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.namespaces import capabilities_to_programs, die_with_parent, setns
from htcondor_vpn.linux.sockets import disconnect
from htcondor_vpn.linux.tun_room import fork_room
from htcondor_vpn.linux.wireguard_go import Started

Address = Union[IPv4Address, IPv6Address]
Network = Union[IPv4Network, IPv6Network]

#: Sockets are asked for so many at a time, before the last ones are taken: a flow need not wait for its own.
_BATCH, _LOW = 8, 4

#: Packets that wait for the VPN's program: what is more is lost, and TCP slows down.
_QUEUE_PACKETS = 1000

#: Longer than it takes there to start wireguard-go on a busy node. They are counted one by one: when a whole pilot was
#: stopped and goes on, nobody has been silent for long.
_SILENT_SECONDS = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TunConfig:
    """What a VPN's server has said of a tun: `mtu` in bytes, our `addresses` there, and what is routed into it.

    Of `routes` all but `refused`; what is in neither is unreachable as well.
    """

    mtu: int
    addresses: tuple[Address, ...]
    routes: tuple[Network, ...]
    refused: tuple[Network, ...] = ()

#: Family, type and protocol of sockets.
_Kind = tuple[int, int, int]


class TunNamespace:
    """The namespace, from `make` to `close`. Its process dies with ours, and it itself with the last thing in it."""

    def __init__(self, pid: int, channel: Channel) -> None:
        self._pid, self._channel = pid, channel
        self._pidfd = os.pidfd_open(pid)
        self._answers: deque[asyncio.Future[list[int]]] = deque()
        self._lost = asyncio.get_running_loop().create_future()
        self._ready: defaultdict[_Kind, deque[socket.socket]] = defaultdict(deque)
        self._refills: dict[_Kind, asyncio.Future[None]] = {}
        self._connections: WeakSet[socket.socket] = WeakSet()
        self._namespaces: list[int] = []
        asyncio.get_running_loop().add_reader(channel.fileno(), self._answered)

    @classmethod
    async def make(cls, as_root: bool = False, on_host: bool = False) -> TunNamespace:
        """Makes one, in which we are root if a program insists on that; or with `on_host` a process alone, of root's,
        which does in this host's network what is asked of it.

        Raises `NamespacesUnavailable`, `LimitReached` or OSError.
        """
        try:
            made = cls(*fork_room(as_root, on_host))
        except OSError as error:
            if (limit := LimitReached.of(error)) is not None:
                raise limit from error
            raise
        try:
            made._namespaces = await made._expect()
        except BaseException:
            made.close()
            raise
        return made

    async def make_tun(self, name: str) -> int:
        """Makes the tun device `name` and returns its descriptor; raises OSError.

        Not needed where the VPN's program makes it itself, in here (`enter`).
        """
        (descriptor,) = await self._ask({"tun": name})
        return descriptor

    async def start_wireguard_go(self, program: str, link: str) -> Started:
        """Starts wireguard-go, which makes the tun device `link` itself; it dies with the namespace's process.

        One that was started here before is ended. Raises OSError or VpnError.
        """
        return Started(*await self._ask({"wireguard_go": [program, link]}))

    async def configure(self, name: str, config: TunConfig) -> None:
        """Sets the link `name` up as `config` says; to be called once for a link. Raises OSError."""
        await self._ask({
            "configure": {
                "name": name, "mtu": config.mtu, "queue_packets": _QUEUE_PACKETS,
                "addresses": [str(address) for address in config.addresses],
                "routes": [str(route) for route in config.routes],
                "refused": [str(route) for route in config.refused],
            }
        })  # fmt: skip

    async def set_mtu(self, name: str, mtu: int) -> None:
        """Gives the link `name` another MTU, which connections heed from then on; raises OSError."""
        await self._ask({"mtu": [name, mtu]})

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Returns a new socket of the namespace, non-blocking and unconnected; raises OSError."""
        key = family, kind, protocol
        ready = self._ready[key]
        while not ready:
            await asyncio.shield(self._refill(key))
        sock = ready.popleft()
        if len(ready) < _LOW:
            self._refill(key)
        if kind == socket.SOCK_STREAM:
            self._connections.add(sock)
        return sock

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of the namespaces, which a process needs for `enter`."""
        return tuple(self._namespaces)

    def enter(self) -> None:
        """Moves this process here, for `preexec_fn`: the program has all capabilities here, and dies with its parent.

        Raises OSError.
        """
        for descriptor in self._namespaces:
            setns(descriptor)
        capabilities_to_programs()
        die_with_parent(signal.SIGKILL)

    @property
    def is_lost(self) -> bool:
        """Whether `lost` has returned."""
        return self._lost.done()

    @property
    def in_use(self) -> bool:
        """Whether there are connections that were opened from here."""
        return any(connection.fileno() >= 0 for connection in self._connections)

    @property
    def gone(self) -> bool:
        """Whether its process has ended: it makes nothing new."""
        return self._lost.done()

    async def lost(self) -> None:
        """Returns when the namespace's process is gone: no more sockets come from here."""
        await asyncio.shield(self._lost)

    def close(self) -> None:
        """Resets the connections that were opened from here, and lets go of the namespace. May be repeated."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it is closed, or was never connected
                disconnect(connection)
        self._connections.clear()
        for ready in self._ready.values():
            while ready:
                ready.pop().close()
        self._over()

    # The process

    def _refill(self, key: _Kind) -> asyncio.Future[None]:
        """Asks for more sockets, unless that has been done already; returns what is done when they have come."""
        if key not in self._refills:
            self._refills[key] = asyncio.ensure_future(self._filled(key))
            self._refills[key].add_done_callback(lambda done: self._refilled(key, done))
        return self._refills[key]

    async def _filled(self, key: _Kind) -> None:
        for descriptor in await self._ask({"sockets": [*map(int, key), _BATCH]}):
            sock = socket.socket(fileno=descriptor)
            sock.setblocking(False)
            self._ready[key].append(sock)

    def _refilled(self, key: _Kind, done: asyncio.Future[None]) -> None:
        del self._refills[key]
        if not done.cancelled() and (error := done.exception()) is not None:
            log.debug("no sockets of the tun's namespace: %s", error)

    async def _ask(self, message: dict[str, Any]) -> list[int]:
        if self._lost.done():
            raise ConnectionResetError("the tun's namespace is gone")
        answer = self._expect()
        try:
            self._channel.send(message)
        except OSError:
            self._over()
        return await self._in_time(answer)

    async def _in_time(self, answer: asyncio.Future[list[int]]) -> list[int]:
        """Returns the answer; ends the process, which raises ConnectionResetError, if it is stopped or stuck."""
        try:
            for _ in range(_SILENT_SECONDS):
                done, _pending = await asyncio.wait([answer], timeout=1.0)
                if done:
                    break
            else:
                log.error("the process of the tun's namespace is stopped or stuck, and killed")
                self._over()
            return await answer
        finally:
            answer.cancel()  # whoever asked may have given up

    def _expect(self) -> asyncio.Future[list[int]]:
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        return answer

    def _answered(self) -> None:
        received = self._channel.receive()
        if received is None:
            self._over()
            return
        message, descriptors = received
        answer = self._answers.popleft()
        if answer.cancelled():
            for descriptor in descriptors:
                os.close(descriptor)
        elif "error" in message:
            answer.set_exception(by_name(message["error"], message["cause"], message["remedy"]))
        elif "said" in message:
            answer.set_exception(OSError(message["errno"], message["said"]))
        else:
            answer.set_result(descriptors)

    def _over(self) -> None:
        """Ends the process, or takes note of its end."""
        if self._lost.done():
            return
        self._lost.set_result(None)
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        os.waitpid(self._pid, 0)
        for descriptor in self._namespaces:
            os.close(descriptor)
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(ConnectionResetError("the tun's namespace is gone"))
                answer.exception()  # who has asked may be gone
