"""By which way a connection goes: through the tunnel, unless a rule leads its destination elsewhere.

What is led to the node's own network leaves the node outside of the tunnel, and works while the tunnel is down: that is
what such a rule is for. Nothing but its destinations can leave like that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.routes import is_own
from htcondor_vpn.route_rules import RouteRule
from htcondor_vpn.special_addresses import Address, never, unmapped
from htcondor_vpn.tunnel.carrier import FarEnd, FlowRefused
from htcondor_vpn.tunnel.carriers.direct import DirectFlows
from htcondor_vpn.tunnel.engine import REASON_LENGTH, RouteReport
from htcondor_vpn.tunnel.ladder import Ladder
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.dialing import HOST, SocketSource

_NODE = "the node's network"
_PROHIBITED = "htcondor-vpn; error=destination_ip_prohibited"

Opened = TypeVar("Opened")


class Outlet(Protocol):
    """A way out, where it works; all raise as `Carrier.open_flow` does."""

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]: ...

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe: ...

    async def echo(self, address: Address, payload: bytes) -> bytes: ...


class NodeNetwork:
    """The node's own network, but for the node itself: its services are none of the jobs' business."""

    def __init__(self, source: SocketSource = HOST) -> None:
        self._flows = DirectFlows(_NODE, source)

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        _judge(address)
        return await self._flows.open_flow(address, port)

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        _judge(address)
        return await self._flows.open_datagrams(address, port)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        _judge(address)
        return await self._flows.echo(address, payload)


def _judge(address: Address) -> None:
    reason = never(address)
    if reason is None and is_own(address):
        reason = "the node's own"
    if reason is not None:
        raise FlowRefused(403, f'{_PROHIBITED}; details="it is {reason}"', _NODE)


class Rejection:
    """The `Outlet` to nowhere."""

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        raise FlowRefused(403, _PROHIBITED, "HTCONDOR_VPN_ROUTES")

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        raise FlowRefused(403, _PROHIBITED, "HTCONDOR_VPN_ROUTES")

    async def echo(self, address: Address, payload: bytes) -> bytes:
        raise FlowRefused(403, _PROHIBITED, "HTCONDOR_VPN_ROUTES")


@dataclass
class Route:
    """Where a rule leads: to an outlet, None for the tunnel itself; to a ladder where something has to be kept up."""

    rule: RouteRule
    outlet: Outlet | None = None
    ladder: Ladder | None = None
    flows: int = 0

    def told(self) -> RouteReport:
        now = self.ladder.now if self.ladder else None
        reason = now.cause[:REASON_LENGTH] if isinstance(now, VpnError) else ""
        return RouteReport(self.rule.destination, self.rule.by, up=not reason, flows=self.flows, reason=reason)


class Routes:
    """An `Outlet`: that of the first of `routes` that fits, else `tunnel`."""

    def __init__(self, routes: Sequence[Route], tunnel: Outlet) -> None:
        self._routes, self._tunnel = routes, tunnel

    async def run(self, changed: Callable[[], None]) -> None:
        """Keeps up what has to be, until cancelled; calls `changed` when something may be told anew."""
        ladders = {id(route.ladder): route.ladder for route in self._routes if route.ladder}
        await asyncio.gather(*(ladder.run(changed) for ladder in ladders.values()))

    def told(self) -> tuple[RouteReport, ...]:
        return tuple(route.told() for route in self._routes)

    @property
    def udp(self) -> bool:
        """Whether there are destinations to which datagrams may be carried although the tunnel carries none."""
        return any(route.rule.leads for route in self._routes)

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        return await self._led(address, port, lambda outlet, to: outlet.open_flow(to, port))

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        return await self._led(address, port, lambda outlet, to: outlet.open_datagrams(to, port))

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """An echo request has no port: only rules for all ports lead it."""
        return await self._led(address, 0, lambda outlet, to: outlet.echo(to, payload))

    async def _led(
        self, address: Address, port: int, opening: Callable[[Outlet, Address], Awaitable[Opened]]
    ) -> Opened:
        address = unmapped(address)
        route = next((route for route in self._routes if route.rule.fits(address, port)), None)
        if route is None:
            return await opening(self._tunnel, address)
        route.flows += 1
        return await opening(route.outlet or self._tunnel, address)
