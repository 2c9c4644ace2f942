"""The gateway's own network as an engine's way out: what came out of a tun and was caught goes on from here.

So a gateway for packets needs no NAT and no privilege, and judges destinations as a gateway for streams does.
"""

from __future__ import annotations

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.gateway.serving.connector import Connector
from htcondor_vpn.gateway.serving.families import Families
from htcondor_vpn.gateway.serving.resolver import Resolver
from htcondor_vpn.tunnel.carrier import Address, Answer, FlowRefused, never
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.udp import UdpPipe
from htcondor_vpn.wire.unreachable import Unreachable


class HostCarrier:
    """See `Carrier`."""

    name, start_seconds = "this host", 0.0

    def __init__(self, connector: Connector, resolver: Resolver, families: Families) -> None:
        self._connector, self._resolver, self._families = connector, resolver, families

    async def open_flow(self, address: Address, port: int) -> tuple[PlainStream, bytes]:
        try:
            return PlainStream(await self._connector.connect(address, port)), b""
        except Unreachable as error:
            raise FlowRefused(error.status, error.proxy_status, self.name) from error

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        try:
            return UdpPipe(await self._connector.connect_datagrams(address, port))
        except Unreachable as error:
            raise FlowRefused(error.status, error.proxy_status, self.name) from error

    async def echo(self, address: Address, payload: bytes) -> bytes:
        try:
            return await self._connector.ping(address, payload)
        except Unreachable as error:
            raise FlowRefused(error.status, error.proxy_status, self.name) from error

    async def ask_dns(self, query: bytes) -> bytes:
        return await self._resolver.answer(query)

    async def probe(self) -> Answer:
        if not (routed := self._families.routed()):
            raise GatewayUnreachable("this host has no route to anywhere that pilots may reach")
        return Answer(tuple(sorted(routed)), 0.0, udp=True)

    async def lost(self) -> None:
        await never()

    def forget(self) -> None:
        """There is nothing that is kept."""
