"""What a pool is made of: a carrier, or the gateways that a name stands for at the moment."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from htcondor_vpn.errors import GatewayNameError
from htcondor_vpn.tunnel.carrier import Carrier
from htcondor_vpn.tunnel.carriers.server import host_port
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.dialing import Endpoint

_LOOK_UP_SECONDS = 10.0


class Member(Protocol):
    """One entry of a list of gateways, proxies, or the like."""

    #: HOST:PORT, as it is configured.
    name: str
    #: What each of its carriers gets of the flows, in proportion to others.
    weight: float

    async def look_up(self) -> Sequence[Carrier]:
        """Returns the carriers of now, the same ones for what is the same; raises VpnError."""


class Lone:
    """See `Member`: always the same carrier."""

    def __init__(self, carrier: Carrier, weight: float = 1.0) -> None:
        self.name, self.weight, self._carrier = carrier.name, weight, carrier

    async def look_up(self) -> Sequence[Carrier]:
        return [self._carrier]


class Named:
    """See `Member`: each address of `host` is a carrier of its own, made by `make`; `knob` is where the name stands."""

    def __init__(
        self, host: str, port: int, knob: str, make: Callable[[Endpoint], Carrier], weight: float = 1.0
    ) -> None:
        self.name, self.weight = host_port(host, port), weight
        self._host, self._port, self._knob, self._make = host, port, knob, make
        self._carriers: dict[Endpoint, Carrier] = {}

    async def look_up(self) -> Sequence[Carrier]:
        endpoints = dict.fromkeys(await self._endpoints())
        # Those that stay keep their order: name servers turn theirs with each answer.
        kept = {endpoint: carrier for endpoint, carrier in self._carriers.items() if endpoint in endpoints}
        self._carriers = {**kept, **{new: self._make(new) for new in endpoints if new not in kept}}
        return list(self._carriers.values())

    async def _endpoints(self) -> list[Endpoint]:
        try:
            with Deadline(_LOOK_UP_SECONDS):
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (socket.gaierror, asyncio.TimeoutError) as error:
            why = getattr(error, "strerror", None) or f"no name server answers within {_LOOK_UP_SECONDS:g} s"
            raise GatewayNameError(
                f"the gateway's name {self._host} does not resolve: {why}",
                f"check {self._knob}, or give the gateway's address",
            ) from error
        return [(family, address) for family, _, _, _, address in found]
