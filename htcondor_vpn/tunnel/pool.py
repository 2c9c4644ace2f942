"""The carriers of one kind, watched each by itself: flows are spread over all that work.

A carrier that is lost gets no new flow from then on, and is taken back when it answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Address, Carrier
from htcondor_vpn.tunnel.health import HealthMonitor, Healthy, most_telling
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.stream import Stream

Result = TypeVar("Result")


class Pool:
    """`carriers` of the kind `engine`. Usable while `run` runs."""

    def __init__(
        self, engine: str, carriers: Sequence[Carrier], interval_seconds: float, timeout_seconds: float
    ) -> None:
        self.engine, self._carriers = engine, list(carriers)
        self._interval, self._timeout = interval_seconds, timeout_seconds
        self._found: dict[Carrier, Healthy | VpnError] = {}
        self._turn = 0

    async def run(self, changed: Callable[[Pool], None]) -> VpnError:
        """Watches the carriers until none of them works, be it at the first try, and returns why.

        Calls `changed` after each probe while one works.
        """
        over: asyncio.Future[VpnError] = asyncio.get_running_loop().create_future()

        def told(carrier: Carrier, what: Healthy | VpnError) -> None:
            self._found[carrier] = what
            if over.done():
                return
            if self.healthy():
                changed(self)
            elif len(self._found) == len(self._carriers):
                over.set_result(most_telling([found for found in self._found.values() if isinstance(found, VpnError)]))

        watches = [asyncio.ensure_future(self._watch(carrier, told)) for carrier in self._carriers]
        try:
            futures: list[asyncio.Future[Any]] = [over, *watches]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            for watch in watches:
                if watch.done():
                    watch.result()
            return over.result()
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            self._found.clear()

    async def _watch(self, carrier: Carrier, told: Callable[[Carrier, Healthy | VpnError], None]) -> None:
        await HealthMonitor(carrier, self._interval, self._timeout, lambda what: told(carrier, what)).run()

    def healthy(self) -> list[Healthy]:
        """What is known of the carriers that work, in the order in which they are configured."""
        found = (self._found.get(carrier) for carrier in self._carriers)
        return [known for known in found if isinstance(known, Healthy)]

    @property
    def families(self) -> tuple[str, ...]:
        """What at least one carrier reaches."""
        known = {family for healthy in self.healthy() for family in healthy.families}
        return tuple(sorted(known))

    @property
    def udp(self) -> bool:
        """Whether at least one carrier carries datagrams."""
        return any(healthy.udp for healthy in self.healthy())

    async def open_flow(self, address: Address, port: int) -> tuple[Stream, bytes]:
        """As `Carrier.open_flow`; a carrier that cannot be reached just now is passed over for the next one."""
        return await self._try(lambda carrier: carrier.open_flow(address, port), f"ipv{address.version}")

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        """As `Carrier.open_datagrams`, by one that carries them."""
        return await self._try(lambda carrier: carrier.open_datagrams(address, port), f"ipv{address.version}", udp=True)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """As `Carrier.echo`."""
        return await self._try(lambda carrier: carrier.echo(address, payload), f"ipv{address.version}")

    async def ask_dns(self, query: bytes) -> bytes:
        """As `Carrier.ask_dns`."""
        return await self._try(lambda carrier: carrier.ask_dns(query))

    async def _try(
        self, attempt: Callable[[Carrier], Awaitable[Result]], family: str = "", *, udp: bool = False
    ) -> Result:
        last = GatewayUnreachable(f"no gateway reaches {family or 'anything'} now", "it is tried again")
        for carrier in self._in_turn(family, udp):
            try:
                return await attempt(carrier)
            except GatewayUnreachable as error:
                last = error
        raise last

    def _in_turn(self, family: str, udp: bool) -> list[Carrier]:
        """The carriers that work and reach `family`, with `udp` if that is asked for; another one first each time."""
        able = [
            known.carrier
            for known in self.healthy()
            if (not family or family in known.families) and (known.udp or not udp)
        ]
        if not able:
            return []
        self._turn = (self._turn + 1) % len(able)
        return able[self._turn :] + able[: self._turn]
