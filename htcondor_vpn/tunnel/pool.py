"""The carriers of one kind, watched each by itself: flows are spread over all that work.

A carrier that is lost gets no new flow from then on, what was being opened through it is tried elsewhere, and it is
taken back when it answers again. One whose name stands for it no more is let go; the flows that it has go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from htcondor_vpn.errors import GatewayUnreachable, GatewayUntrusted, VpnError
from htcondor_vpn.tunnel.carrier import Address, Carrier, FarEnd
from htcondor_vpn.tunnel.engine import MOST_CARRIERS, CarrierReport
from htcondor_vpn.tunnel.followed import Followed, Healthy
from htcondor_vpn.tunnel.health import most_telling
from htcondor_vpn.tunnel.members import Member
from htcondor_vpn.tunnel.spread import Spread
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.deadline import cancel

Result = TypeVar("Result")

class Pool:
    """The carriers of `members`, of the kind `engine`. Usable while `run` runs."""

    def __init__(self, engine: str, members: Sequence[Member], interval_seconds: float, timeout_seconds: float) -> None:
        self.engine = engine
        self._followed = [Followed(member, interval_seconds, timeout_seconds, self._let_go) for member in members]
        # One for each: else who asks a name before each flow would have all flows in one place.
        self._flows, self._datagrams, self._questions = (Spread[Carrier]() for _ in range(3))

    async def run(self, changed: Callable[[Pool], None]) -> VpnError:
        """Watches the carriers until none of them works, be it at the first try, and returns why.

        Calls `changed` after each probe while one works.
        """
        over: asyncio.Future[VpnError] = asyncio.get_running_loop().create_future()

        def told() -> None:
            if over.done():
                return
            if self.healthy():
                changed(self)
            elif all(followed.known for followed in self._followed):
                over.set_result(most_telling([error for followed in self._followed for error in followed.errors()]))

        follows = [asyncio.ensure_future(followed.run(told)) for followed in self._followed]
        try:
            futures: list[asyncio.Future[Any]] = [over, *follows]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            for follow in follows:
                if follow.done():
                    follow.result()
            return over.result()
        finally:
            await cancel(follows)

    def _let_go(self, carrier: Carrier) -> None:
        for spread in (self._flows, self._datagrams, self._questions):
            spread.forget(carrier)

    def healthy(self) -> list[Healthy]:
        """What is known of the carriers that work, in the order in which they are configured."""
        return [known for followed in self._followed for known in followed.healthy()]

    def told(self) -> tuple[CarrierReport, ...]:
        """What there is to tell of each carrier, of those that do not work too."""
        return tuple(report for followed in self._followed for report in followed.told())[:MOST_CARRIERS]

    @property
    def families(self) -> tuple[str, ...]:
        """What at least one carrier reaches."""
        known = {family for healthy in self.healthy() for family in healthy.answer.families}
        return tuple(sorted(known))

    @property
    def udp(self) -> bool:
        """Whether at least one carrier carries datagrams."""
        return any(healthy.answer.udp for healthy in self.healthy())

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        """As `Carrier.open_flow`; a carrier that cannot be reached or trusted just now is passed over for the next."""
        family = f"ipv{address.version}"
        return await self._try(self._flows, lambda carrier: carrier.open_flow(address, port), family)

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        """As `Carrier.open_datagrams`, by one that carries them."""
        family = f"ipv{address.version}"
        return await self._try(self._datagrams, lambda carrier: carrier.open_datagrams(address, port), family, udp=True)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """As `Carrier.echo`."""
        family = f"ipv{address.version}"
        return await self._try(self._questions, lambda carrier: carrier.echo(address, payload), family)

    async def ask_dns(self, query: bytes) -> bytes:
        """As `Carrier.ask_dns`."""
        return await self._try(self._questions, lambda carrier: carrier.ask_dns(query))

    async def _try(
        self,
        spread: Spread[Carrier],
        attempt: Callable[[Carrier], Awaitable[Result]],
        family: str = "",
        *,
        udp: bool = False,
    ) -> Result:
        last: VpnError = GatewayUnreachable(f"no gateway reaches {family or 'anything'} now", "it is tried again")
        able = [
            known
            for known in self.healthy()
            if (not family or family in known.answer.families) and (known.answer.udp or not udp)
        ]
        for carrier in in_turn(able, spread):
            followed = next((each for each in self._followed if carrier in each), None)
            if followed is None:
                continue  # it was let go meanwhile
            try:
                with followed.revocable(carrier):
                    return await attempt(carrier)
            except GatewayUnreachable as error:
                last = error
            except GatewayUntrusted as error:
                followed.doubt(carrier)
                last = error
        raise last


def in_turn(able: Sequence[Healthy], spread: Spread[Carrier]) -> list[Carrier]:
    """The carriers in the order in which they are to be tried, another one first each time as their shares have it.

    Those that drain come last, before them those that are full or of weight 0. What reaches a gateway that another one
    reaches too, by another address of it, has no share of its own.
    """
    seen: set[str] = set()
    ranks: list[dict[Carrier, float]] = [{}, {}, {}, {}]
    for known in able:
        instance = known.answer.instance
        rank = 3 if known.answer.draining else 2 if instance and instance in seen else 0 if known.share > 0 else 1
        seen.add(instance)
        ranks[rank][known.carrier] = known.share
    chosen = next((rank for rank in ranks if rank), {})
    return [*spread.order(chosen), *(carrier for rank in ranks if rank is not chosen for carrier in rank)]
