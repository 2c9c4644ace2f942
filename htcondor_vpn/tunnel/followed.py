"""One member of a pool through time: who its carriers are, which of them work, and what goes through each just now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Answer, Carrier
from htcondor_vpn.tunnel.engine import REASON_LENGTH, CarrierReport
from htcondor_vpn.tunnel.health import HealthMonitor
from htcondor_vpn.tunnel.members import Member
from htcondor_vpn.wire.deadline import Revocable, cancel

#: How often names are looked up: at any rate, and while one is not known or one of its carriers does not work.
LOOK_UP_SECONDS, LOOK_UP_AGAIN_SECONDS = 60.0, 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Healthy:
    """A carrier that works, which member it is of, and what its last probe said."""

    carrier: Carrier
    member: Member
    answer: Answer

    @property
    def share(self) -> float:
        """What it is to get of the flows, in proportion to others."""
        return self.member.weight * (1.0 - self.answer.load)


class Followed:
    """Follows `member` while `run` runs; calls `let_go` with a carrier that it is made of no more.

    `interval_seconds` and `timeout_seconds` are those of the probes.
    """

    def __init__(
        self, member: Member, interval_seconds: float, timeout_seconds: float, let_go: Callable[[Carrier], None]
    ) -> None:
        self._member, self._let_go = member, let_go
        self._times = interval_seconds, timeout_seconds
        self._found: dict[Carrier, Answer | VpnError | None] = {}
        self._revocables: dict[Carrier, set[Revocable]] = {}
        self._monitors: dict[Carrier, HealthMonitor] = {}
        self._unknown: VpnError | None = None
        self._lost = asyncio.Event()

    def __contains__(self, carrier: Carrier) -> bool:
        return carrier in self._found

    @property
    def known(self) -> bool:
        """Whether it has been told of all that there is, be it that it does not work."""
        return self._unknown is not None or bool(self._found) and all(self._found.values())

    def errors(self) -> list[VpnError]:
        return [found for found in (self._unknown, *self._found.values()) if isinstance(found, VpnError)]

    def healthy(self) -> list[Healthy]:
        return [Healthy(each, self._member, found) for each, found in self._found.items() if isinstance(found, Answer)]

    def told(self) -> list[CarrierReport]:
        if self._unknown is not None:
            return [CarrierReport(self._member.name, up=False, reason=self._unknown.cause[:REASON_LENGTH])]
        return [_report(carrier.name, found) for carrier, found in self._found.items()]

    def revocable(self, carrier: Carrier) -> Revocable:
        """To be put around what goes through a carrier that works: raises GatewayUnreachable when that is lost."""
        gone = GatewayUnreachable(f"the gateway {carrier.name} was lost meanwhile", "it is tried again")
        return Revocable(gone, self._revocables.setdefault(carrier, set()))

    def doubt(self, carrier: Carrier) -> None:
        """Has one that seems to work probed from scratch: a new connection led to somebody else."""
        if carrier in self._monitors:
            self._monitors[carrier].doubt()

    async def run(self, told: Callable[[], None]) -> None:
        """Watches the carriers, and who they are, until cancelled; calls `told` whenever more is known."""
        watches: dict[Carrier, asyncio.Task[None]] = {}
        try:
            while True:
                try:
                    carriers = await self._member.look_up()
                except VpnError as error:
                    if not watches:  # else those that were known before are as good as they were
                        self._unknown = error
                        told()
                else:
                    self._unknown = None
                    await self._replace(watches, carriers, told)
                await self._until_look_up(list(watches.values()))
        finally:
            await self._replace(watches, (), told)
            self._unknown = None

    async def _replace(
        self, watches: dict[Carrier, asyncio.Task[None]], carriers: Sequence[Carrier], told: Callable[[], None]
    ) -> None:
        """Has exactly `carriers` watched. Who is let go keeps the flows that it has."""
        gone = [carrier for carrier in watches if carrier not in carriers]
        ending = [watches.pop(carrier) for carrier in gone]
        self._found = {carrier: self._found.get(carrier) for carrier in carriers}
        for carrier in gone:
            self._revocables.pop(carrier, None)
            self._let_go(carrier)
        for carrier in carriers:
            if carrier not in watches:
                watches[carrier] = asyncio.ensure_future(self._watch(carrier, told))
        await cancel(ending)

    async def _watch(self, carrier: Carrier, told: Callable[[], None]) -> None:
        def changed(what: Answer | VpnError) -> None:
            if carrier in self._found:
                self._tell(carrier, what)
                told()

        monitor = self._monitors[carrier] = HealthMonitor(carrier, *self._times, changed)
        try:
            await monitor.run()
        finally:
            del self._monitors[carrier]

    async def _until_look_up(self, watches: Sequence[asyncio.Task[None]]) -> None:
        """A carrier that is lost is asked for at once: its address may just have been replaced."""
        self._lost.clear()
        waiting = asyncio.ensure_future(self._lost.wait())
        futures: list[asyncio.Future[Any]] = [waiting, *watches]
        begin = asyncio.get_running_loop().time()
        try:
            while not waiting.done():
                seconds = LOOK_UP_AGAIN_SECONDS if self._unknown or self.errors() else LOOK_UP_SECONDS
                left = begin + seconds - asyncio.get_running_loop().time()
                if left <= 0:
                    return
                done, _ = await asyncio.wait(
                    futures, timeout=min(left, LOOK_UP_AGAIN_SECONDS), return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
        finally:
            waiting.cancel()

    def _tell(self, carrier: Carrier, what: Answer | VpnError) -> None:
        before, self._found[carrier] = self._found.get(carrier), what
        if isinstance(what, VpnError) and isinstance(before, Answer):
            log.info("%s is left: %s", carrier.name, what)
            for revocable in list(self._revocables.get(carrier, ())):
                revocable.revoke()
            self._lost.set()
        elif isinstance(what, Answer) and not isinstance(before, Answer):
            log.info("%s works", carrier.name)


def _report(name: str, found: Answer | VpnError | None) -> CarrierReport:
    if isinstance(found, Answer):
        return CarrierReport(name, load=found.load, draining=found.draining)
    return CarrierReport(name, up=False, reason=found.cause[:REASON_LENGTH] if found else "it has not answered yet")
