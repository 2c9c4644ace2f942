"""The addresses of the names that policies have.

They are asked for as jobs ask: by the resolver of this mount namespace's resolv.conf, which is the tunnel's. A name may
stand for changing addresses: each is kept for a while, since a job may still use what it was told some minutes ago.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import Any

from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.special_addresses import Network

#: How long an address counts that a name had, and how long an answer may take.
KEPT_SECONDS = 3600.0
_ANSWER_SECONDS = 5.0
_LOOKUPS = 4

log = logging.getLogger(__name__)

Destinations = tuple[Destination, ...]


class Addresses:
    """`look_up` is getaddrinfo(3), which blocks."""

    def __init__(self, look_up: Callable[[str, None], Iterable[Any]] = socket.getaddrinfo) -> None:
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(_LOOKUPS, "addresses")
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
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, name, None)
        try:
            for answer in await asyncio.wait_for(work, _ANSWER_SECONDS):
                seen[ip_network(answer[4][0].partition("%")[0])] = now
        except (OSError, UnicodeError, asyncio.TimeoutError) as error:
            log.warning("nothing new is allowed, denied or counted for %s: %s", name, error or "no answer")
        for network in [network for network, when in seen.items() if now - when > KEPT_SECONDS]:
            del seen[network]
        return sorted(seen, key=str)
