"""Chooses among kinds of engines: the first one, in the order given, that works end to end.

It is kept until it is lost; then all are tried again from the first on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.health import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, most_telling
from htcondor_vpn.tunnel.pool import Pool

log = logging.getLogger(__name__)


class Ladder:
    """Runs until cancelled; calls `changed` after each probe with the pool in use, or with the reason for none."""

    def __init__(self, pools: Sequence[Pool], changed: Callable[[Pool | VpnError], None]) -> None:
        self._pools, self._changed = pools, changed

    async def run(self) -> None:
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
                self._changed(pool)

            reason = await pool.run(told)
            if worked:
                self._changed(reason)
                return True
            log.info("engine %s does not work: %s", pool.engine, reason)
            reasons.append((pool.engine, reason))
            self._changed(_summary(reasons, final=len(reasons) == len(self._pools)))
        return False


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
