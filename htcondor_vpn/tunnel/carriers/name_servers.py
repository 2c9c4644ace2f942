"""The name servers that a carrier asks where it has none of its own: any of them will do.

A probe asks them all, since what answers a question is reached. By default a family counts as carried if a name server
of that family answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Answer
from htcondor_vpn.tunnel.health import most_telling
from htcondor_vpn.wire.deadline import Deadline

#: How long one name server may take before the next one is asked.
_ASK_SECONDS = 4.0


class NameServer(Protocol):
    """One name server; see `StreamNameServer` and `PlainNameServer`."""

    name: str

    @property
    def family(self) -> str:
        """ "ipv4" or "ipv6", by its address."""

    async def ask(self, query: bytes) -> bytes:
        """Sends a DNS message (wire format) and returns the answer; raises OSError, asyncio.TimeoutError, VpnError."""

    async def probe(self) -> None:
        """Asks something anew, whatever connections there are; raises as `ask`."""

    def forget(self) -> None:
        """Cuts the kept connections."""


class NameServers:
    """`servers` behind the carrier `through`; each may take `probe_seconds` for a probe, the first one `start_seconds`.

    `remedy` tells people what to do about one that does not answer.
    """

    def __init__(
        self,
        servers: Sequence[NameServer],
        through: str,
        remedy: str,
        probe_seconds: float,
        start_seconds: float = 0.0,
    ) -> None:
        self._servers, self._good = list(servers), list(servers)
        self._through, self._remedy = through, remedy
        self._probe_seconds, self._start_seconds = probe_seconds, start_seconds
        self._started = False

    async def ask(self, query: bytes) -> bytes:
        """As `Carrier.ask_dns`: asks those that answered the last probe, one after the other."""
        last: Exception = GatewayUnreachable("no name server answers")
        for server in list(self._good):
            try:
                with Deadline(_ASK_SECONDS):
                    return await server.ask(query)
            except (OSError, asyncio.TimeoutError) as error:
                last = error
                self._good.sort(key=lambda each: each is server)  # the last one to be asked next time
        raise last

    async def probe(self) -> Answer:
        """As `Carrier.probe`; raises VpnError if none answers."""
        results = await asyncio.gather(*map(self._probed, self._servers))
        latencies = {server: result for server, result in zip(self._servers, results) if isinstance(result, float)}
        if not latencies:
            errors = [result for result in results if isinstance(result, VpnError)]
            raise most_telling(errors) if errors else GatewayUnreachable("there is no name server", self._remedy)
        self._good, self._started = list(latencies), True
        families = tuple(sorted({server.family for server in latencies}))
        return Answer(families, min(latencies.values()))

    async def _probed(self, server: NameServer) -> float | VpnError:
        """Returns a server's latency in ms, or what is wrong."""
        start = time.perf_counter()
        seconds = max(self._probe_seconds, 0.0 if self._started else self._start_seconds)
        try:
            with Deadline(seconds):
                await server.probe()
        except VpnError as error:
            return error
        except (OSError, asyncio.TimeoutError) as error:
            return GatewayUnreachable(
                f"the name server {server.name} does not answer through {self._through}: {error}", self._remedy
            )
        return (time.perf_counter() - start) * 1e3

    def forget(self) -> None:
        """As `Carrier.forget`."""
        for server in self._servers:
            server.forget()
        self._started = False
