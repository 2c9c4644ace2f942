"""Whether the names in a policy's destinations have addresses: a rule about an unknown host protects nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.jobnet.policy.look_ups import LookUps

#: How long a name that had an address is not asked for again, and how long an answer may take.
FRESH_SECONDS = 600.0
ANSWER_SECONDS = 4.0


class Names:
    """Looks names up by `look_ups`, once for a while."""

    def __init__(self, look_ups: LookUps | None = None) -> None:
        self._look_ups = look_ups or LookUps(ANSWER_SECONDS)
        self._resolved: dict[str, float] = {}

    async def check(self, destinations: Iterable[Destination]) -> None:
        """Raises `NotResolved` for the first name that has no address."""
        names = dict.fromkeys(each.where for each in destinations if isinstance(each.where, str))
        await asyncio.gather(*map(self._check, names))

    async def _check(self, name: str) -> None:
        if time.monotonic() < self._resolved.get(name, -FRESH_SECONDS) + FRESH_SECONDS:
            return
        await self._look_ups.networks(name)
        self._resolved[name] = time.monotonic()
