"""The carrier of plain sockets: a flow is a TCP connection to its destination, and no more than that.

Its sockets come from a source, and what they reach is what that one's network namespace reaches: the network behind a
VPN's tun device, or the node's own network for what is meant to go there.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.tunnel.carrier import Address, Answer, FlowRefused, never
from htcondor_vpn.tunnel.carriers.dns_plain import PlainNameServer
from htcondor_vpn.tunnel.carriers.name_servers import NameServers
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.dialing import Endpoint, SocketSource, connect_datagrams, connect_first
from htcondor_vpn.wire.ping import ping
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.udp import UdpPipe
from htcondor_vpn.wire.unreachable import Unreachable

#: As long as a gateway tries.
CONNECT_SECONDS = 10.0

Made = TypeVar("Made")


class DirectFlows:
    """Opens flows and ways for datagrams with sockets of `source`; `name` is what errors call it."""

    def __init__(self, name: str, source: SocketSource) -> None:
        self.name, self._source = name, _Told(name, source)

    async def open_flow(self, address: Address, port: int) -> tuple[PlainStream, bytes]:
        """As `Carrier.open_flow`."""
        return PlainStream(await self._connected(connect_first([_endpoint(address, port)], self._source))), b""

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        """As `Carrier.open_datagrams`."""
        return UdpPipe(await self._connected(connect_datagrams([_endpoint(address, port)], self._source)))

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """As `Carrier.echo`."""
        try:
            return await self._connected(ping(_endpoint(address, 0), payload, self._source))
        except Unreachable as error:
            raise FlowRefused(error.status, error.proxy_status, self.name) from error

    async def _connected(self, connecting: Awaitable[Made]) -> Made:
        try:
            with Deadline(CONNECT_SECONDS):
                return await connecting
        except asyncio.TimeoutError:
            why = Unreachable.by(TimeoutError(errno.ETIMEDOUT, f"no answer within {CONNECT_SECONDS:g} s"))
        except OSError as error:
            why = Unreachable.by(error)
        raise FlowRefused(why.status, why.proxy_status, self.name)


class DirectCarrier(DirectFlows):
    """See `Carrier`. Questions go to `name_servers`, (address, port), as does a probe, for `probe_seconds` each.

    It carries what `families` are given, or those of which a name server answers. `lost` and `forget` are those of
    `Carrier`, for what lies below the sockets.
    """

    def __init__(
        self,
        name: str,
        source: SocketSource,
        name_servers: Sequence[tuple[str, int]],
        probe_seconds: float,
        *,
        families: Sequence[str] = (),
        udp: bool = True,
        start_seconds: float = 0.0,
        lost: Callable[[], Awaitable[None]] = never,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name, source)
        self.start_seconds = start_seconds
        self._probe_seconds, self._udp = probe_seconds, udp
        self._lost, self._forget = lost, forget
        self.use(name_servers, families)

    def use(self, name_servers: Sequence[tuple[str, int]], families: Sequence[str] = ()) -> None:
        """Takes these from now on, where they become known only once there is a network."""
        self._families = tuple(sorted(families))
        self._name_servers = NameServers(
            [PlainNameServer(address, port, self._source) for address, port in name_servers],
            self.name,
            "check HTCONDOR_VPN_NAME_SERVERS, and that they can be reached there",
            self._probe_seconds,
            self.start_seconds,
        )

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        if not self._udp:
            raise FlowRefused(501, "it carries no datagrams", self.name)
        return await super().open_datagrams(address, port)

    async def ask_dns(self, query: bytes) -> bytes:
        return await self._name_servers.ask(query)

    async def probe(self) -> Answer:
        answer = await self._name_servers.probe()
        return Answer(self._families or answer.families, answer.latency_ms, self._udp)

    async def lost(self) -> None:
        await self._lost()

    def forget(self) -> None:
        self._name_servers.forget()
        self._forget()


class _Told:
    """A source whose own failure is not taken for the destination's."""

    def __init__(self, name: str, source: SocketSource) -> None:
        self._name, self._source = name, source

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        try:
            return await self._source.open(family, kind, protocol)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT or isinstance(error, PermissionError):
                raise  # a kernel without IPv6, or a kind of socket that is not for everyone
            raise GatewayUnreachable(
                f"{self._name} has no socket for a connection: {error.strerror or error}", "it is tried again"
            ) from error


def _endpoint(address: Address, port: int) -> Endpoint:
    return (socket.AF_INET if address.version == 4 else socket.AF_INET6), (str(address), port)
