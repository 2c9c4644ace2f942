"""The carrier that goes through a proxy of the site's: flows are plain TCP, names are asked of name servers beyond it.

A family counts as carried if a name server of that family answers through the proxy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Address, Answer, FlowRefused
from htcondor_vpn.tunnel.dns_stream import NameServer
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.stream import PlainStream

#: How long one name server may take before the next one is asked.
_ASK_SECONDS = 4.0


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
        self._proxy, self._probe_seconds = proxy, probe_seconds
        self._servers = [NameServer(host, port, proxy.connect) for host, port in name_servers]
        self._good = list(self._servers)
        self._started = False

    async def open_flow(self, address: Address, port: int) -> tuple[PlainStream, bytes]:
        return await self._proxy.connect(str(address), port)

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        raise FlowRefused(501, "it carries no datagrams", self.name)

    async def ask_dns(self, query: bytes) -> bytes:
        last: Exception = GatewayUnreachable("no name server answers")
        for server in self._good:
            try:
                with Deadline(_ASK_SECONDS):
                    return await server.ask(query)
            except (OSError, asyncio.TimeoutError) as error:
                last = error
        raise last

    async def probe(self) -> Answer:
        results = await asyncio.gather(*map(self._probed, self._servers))
        latencies = {server: result for server, result in zip(self._servers, results) if isinstance(result, float)}
        if not latencies:
            raise _most_telling([result for result in results if isinstance(result, VpnError)])
        self._good, self._started = list(latencies), True
        families = tuple(sorted({server.family for server in latencies}))
        return Answer(families, min(latencies.values()))

    async def _probed(self, server: NameServer) -> float | VpnError:
        """Returns a server's latency in ms, or what is wrong."""
        start = time.perf_counter()
        seconds = max(self._probe_seconds, 0.0 if self._started else self.start_seconds)
        try:
            with Deadline(seconds):
                await server.probe()
        except VpnError as error:
            return error
        except (OSError, asyncio.TimeoutError) as error:
            return GatewayUnreachable(
                f"the name server {server.name} does not answer through {self.name}: {error}",
                "check HTCONDOR_VPN_NAME_SERVERS, and that the proxy allows connections to them",
            )
        return (time.perf_counter() - start) * 1e3

    async def lost(self) -> None:
        await self._proxy.lost()

    def forget(self) -> None:
        for server in self._servers:
            server.forget()
        self._proxy.forget()
        self._started = False


def _most_telling(errors: Sequence[VpnError]) -> VpnError:
    return next((error for error in errors if not isinstance(error, GatewayUnreachable)), errors[0])
