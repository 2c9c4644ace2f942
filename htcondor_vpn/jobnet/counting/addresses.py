"""The addresses of the names that policies have.

They are asked for as jobs ask: by the resolver of this mount namespace's resolv.conf, which is the tunnel's. A name may
stand for changing addresses: each is kept for a while, since a job may still use what it was told some minutes ago.
"""

from __future__ import annotations

import logging
import time

from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.jobnet.policy.look_ups import LookUps, NotResolved
from htcondor_vpn.special_addresses import Network

#: How long an address counts that a name had, and how long an answer may take.
KEPT_SECONDS = 3600.0
_ANSWER_SECONDS = 5.0

log = logging.getLogger(__name__)

Destinations = tuple[Destination, ...]


class Addresses:
    """As `look_ups` find them."""

    def __init__(self, look_ups: LookUps | None = None) -> None:
        self._look_ups = look_ups or LookUps(_ANSWER_SECONDS)
        self._seen: dict[str, dict[Network, float]] = {}

    async def of(self, destinations: Destinations, instead: Destinations = ()) -> Destinations:
        """Replaces names by their addresses; `instead` is the result where there were destinations and none is left."""
        found: dict[Destination, None] = {}
        for destination in destinations:
            if isinstance(destination.where, str):
                for network in await self._networks(destination.where):
                    found[destination._replace(where=network)] = None
            else:
                found[destination] = None
        return tuple(found) or (instead if destinations else ())

    async def _networks(self, name: str) -> list[Network]:
        seen, now = self._seen.setdefault(name, {}), time.monotonic()
        try:
            seen.update(dict.fromkeys(await self._look_ups.networks(name), now))
        except NotResolved as error:
            log.warning("nothing new is allowed, denied or counted for %s", error)
        for network in [network for network, when in seen.items() if now - when > KEPT_SECONDS]:
            del seen[network]
        return sorted(seen, key=str)
