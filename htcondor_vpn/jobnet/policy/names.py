"""Whether the names in a policy's destinations have addresses: a rule about an unknown host protects nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from htcondor_vpn.jobnet.policy.destinations import Destination

#: How long a name that had an address is not asked for again, and how long an answer may take.
FRESH_SECONDS = 600.0
ANSWER_SECONDS = 4.0
_LOOKUPS = 4


class NotResolved(Exception):
    """A name has no address; the text says which, and why."""


class Names:
    """Looks names up as the programs in this process' network namespace do (getaddrinfo(3))."""

    def __init__(self, lookup: Callable[[str, None], Iterable[Any]] = socket.getaddrinfo) -> None:
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(_LOOKUPS, "names")
        self._resolved: dict[str, float] = {}

    async def check(self, destinations: Iterable[Destination]) -> None:
        """Raises `NotResolved` for the first name that has no address."""
        names = dict.fromkeys(each.where for each in destinations if isinstance(each.where, str))
        await asyncio.gather(*map(self._check, names))

    async def _check(self, name: str) -> None:
        if time.monotonic() < self._resolved.get(name, -FRESH_SECONDS) + FRESH_SECONDS:
            return
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, name, None)
        try:
            await asyncio.wait_for(work, ANSWER_SECONDS)
        except asyncio.TimeoutError:
            raise NotResolved(f"{name}: no answer within {ANSWER_SECONDS:g} s") from None
        except (OSError, UnicodeError) as error:
            raise NotResolved(f"{name}: {getattr(error, 'strerror', None) or error}") from error
        self._resolved[name] = time.monotonic()
