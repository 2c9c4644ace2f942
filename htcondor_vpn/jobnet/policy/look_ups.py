"""Host names to addresses as programs in this process' namespaces have them (getaddrinfo(3)): by the tunnel.

In threads, since that blocks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import Any

from htcondor_vpn.special_addresses import Network

_AT_ONCE = 4


class NotResolved(Exception):
    """A name has no address; the text says which, and why."""


class LookUps:
    """`answer_seconds` is how long an answer may take; `look_up` is getaddrinfo(3) itself."""

    def __init__(
        self, answer_seconds: float, look_up: Callable[[str, None], Iterable[Any]] = socket.getaddrinfo
    ) -> None:
        self._answer_seconds, self._look_up = answer_seconds, look_up
        self._threads = ThreadPoolExecutor(_AT_ONCE, "look-ups")

    async def networks(self, name: str) -> list[Network]:
        """Returns the addresses of a name, each a network of one; raises `NotResolved`."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, name, None)
        try:
            answers = await asyncio.wait_for(work, self._answer_seconds)
        except asyncio.TimeoutError:
            raise NotResolved(f"{name}: no answer within {self._answer_seconds:g} s") from None
        except (OSError, UnicodeError) as error:
            raise NotResolved(f"{name}: {getattr(error, 'strerror', None) or error}") from error
        return [ip_network(answer[4][0].partition("%")[0]) for answer in answers]
