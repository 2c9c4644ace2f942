"""Chooses among kinds of engines: the first one, in the order given, that works end to end.

It is kept until it is lost; then all are tried again from the first on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Address, FarEnd
from htcondor_vpn.tunnel.health import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, most_telling
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.wire.datagrams import DatagramPipe

log = logging.getLogger(__name__)


class Ladder:
    """Uses the first of `pools` that works; `now` is that pool, or the reason why there is none."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self._pools = pools
        self.now: Pool | VpnError = GatewayUnreachable("no gateway has answered yet")

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        """As `Carrier.open_flow`; raises the reason where no pool works."""
        return await self._pool().open_flow(address, port)

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        """As `Carrier.open_datagrams`; raises the reason where no pool works."""
        return await self._pool().open_datagrams(address, port)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """As `Carrier.echo`; raises the reason where no pool works."""
        return await self._pool().echo(address, payload)

    async def ask_dns(self, query: bytes) -> bytes:
        """As `Carrier.ask_dns`; raises the reason where no pool works."""
        return await self._pool().ask_dns(query)

    def _pool(self) -> Pool:
        if isinstance(self.now, VpnError):
            raise self.now
        return self.now

    async def run(self, changed: Callable[[], None]) -> None:
        """Runs until cancelled; calls `changed` after each probe, and when `now` has changed."""
        self._changed = changed
        pause = FIRST_RETRY_SECONDS
        while True:
            worked = await self._climb()
            await asyncio.sleep(FIRST_RETRY_SECONDS if worked else pause)
            pause = FIRST_RETRY_SECONDS if worked else min(2 * pause, LAST_RETRY_SECONDS)

    async def _climb(self) -> bool:
        """Tries each pool until one has worked and was lost; returns False if none did."""
        reasons: list[tuple[str, VpnError]] = []
        for pool in self._pools:
            worked = False

            def told(pool: Pool) -> None:
                nonlocal worked
                if not worked:
                    log.info("engine %s works by %s", pool.engine, pool.healthy()[0].carrier.name)
                worked = True
                self._say(pool)

            reason = await pool.run(told)
            if worked:
                self._say(reason)
                return True
            log.info("engine %s does not work: %s", pool.engine, reason)
            reasons.append((pool.engine, reason))
            self._say(_summary(reasons, final=len(reasons) == len(self._pools)))
        return False

    def _say(self, now: Pool | VpnError) -> None:
        self.now = now
        self._changed()


def _summary(reasons: Sequence[tuple[str, VpnError]], *, final: bool) -> VpnError:
    """What is wrong with each: something that may mend by itself, unless nothing is left to try and none would."""
    if len(reasons) == 1 and final:
        return reasons[0][1]
    cause = "no engine works yet: " + "; ".join(f"{engine}: {reason.cause}" for engine, reason in reasons)
    if not final:
        return GatewayUnreachable(cause, "the next one is being tried")
    told = most_telling([reason for _, reason in reasons])
    may_mend = any(isinstance(reason, GatewayUnreachable) for _, reason in reasons)
    return GatewayUnreachable(cause, told.remedy) if may_mend else type(told)(cause, told.remedy)
