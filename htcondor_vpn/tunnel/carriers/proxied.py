"""The carrier that goes through a proxy of the site's: flows are plain TCP, name servers beyond it are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from htcondor_vpn.tunnel.carrier import Address, Answer, FlowRefused
from htcondor_vpn.tunnel.carriers.dns_stream import StreamNameServer
from htcondor_vpn.tunnel.carriers.name_servers import NameServers
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.stream import PlainStream


class Proxy(Protocol):
    """What opens connections: `HttpProxy`, `Socks5`, `SshForward`."""

    name: str

    async def connect(self, host: str, port: int) -> tuple[PlainStream, bytes]:
        """Returns a stream to `host`:`port`, and what came on it already. Raises as `Carrier.open_flow`."""

    async def lost(self) -> None:
        """As `Carrier.lost`."""

    def forget(self) -> None:
        """As `Carrier.forget`."""


class ProxiedCarrier:
    """See `Carrier`. `name_servers` are (address, port); a probe asks them all, each for at most `probe_seconds`."""

    def __init__(
        self,
        proxy: Proxy,
        name_servers: Sequence[tuple[str, int]],
        probe_seconds: float,
        start_seconds: float = 0.0,
    ) -> None:
        self.name, self.start_seconds = proxy.name, start_seconds
        self._proxy = proxy
        self._name_servers = NameServers(
            [StreamNameServer(host, port, proxy.connect) for host, port in name_servers],
            self.name,
            "check HTCONDOR_VPN_NAME_SERVERS, and that the proxy allows connections to them",
            probe_seconds,
            start_seconds,
        )

    async def open_flow(self, address: Address, port: int) -> tuple[PlainStream, bytes]:
        return await self._proxy.connect(str(address), port)

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        raise FlowRefused(501, "it carries no datagrams", self.name)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        raise FlowRefused(501, "it carries no echo requests", self.name)

    async def ask_dns(self, query: bytes) -> bytes:
        return await self._name_servers.ask(query)

    async def probe(self) -> Answer:
        return await self._name_servers.probe()

    async def lost(self) -> None:
        await self._proxy.lost()

    def forget(self) -> None:
        self._name_servers.forget()
        self._proxy.forget()
