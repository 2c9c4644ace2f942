"""Connects to a pilot's destination: judged first, then by the first address that answers (RFC 8305).

What fails has a name from RFC 9209's registry, which the pilot's engine turns into what the application sees.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TypeVar

from htcondor_vpn.gateway.serving.destinations import Policy, interleaved
from htcondor_vpn.gateway.serving.names import Names
from htcondor_vpn.special_addresses import Address
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.dialing import Endpoint, connect_datagrams, connect_first
from htcondor_vpn.wire.ping import ping
from htcondor_vpn.wire.unreachable import Unreachable

Reached = TypeVar("Reached")


class Connector:
    """Makes connections as `policy` allows, each within `timeout_seconds`, the look-up of the name included."""

    def __init__(self, policy: Policy, names: Names, timeout_seconds: float) -> None:
        self._policy, self._names, self._timeout_seconds = policy, names, timeout_seconds

    async def connect(self, host: Address | str, port: int, asker: Hashable = None) -> socket.socket:
        """Returns a connected, non-blocking TCP socket; raises `Unreachable`. Those who ask share the look-ups."""
        return await self._reach(host, port, connect_first, asker)

    async def connect_datagrams(self, host: Address | str, port: int, asker: Hashable = None) -> socket.socket:
        """Returns a connected, non-blocking UDP socket; otherwise as `connect`."""
        return await self._reach(host, port, connect_datagrams, asker)

    async def ping(self, address: Address, payload: bytes) -> bytes:
        """Sends an ICMP echo request and returns what came back; raises `Unreachable`."""
        return await self._reach(address, 0, lambda endpoints: ping(endpoints[0], payload))

    async def _reach(
        self,
        host: Address | str,
        port: int,
        dial: Callable[[Sequence[Endpoint]], Awaitable[Reached]],
        asker: Hashable = None,
    ) -> Reached:
        resolved = False
        try:
            with Deadline(self._timeout_seconds):
                addresses = [host] if not isinstance(host, str) else await self._names.lookup(host, asker)
                resolved = True
                return await dial([_endpoint(address, port) for address in self._judged(addresses, port)])
        except asyncio.TimeoutError:
            error = "connection_timeout" if resolved else "dns_timeout"
            raise Unreachable(504, error, f"no answer within {self._timeout_seconds:g} s") from None
        except socket.gaierror as error:
            raise Unreachable(502, "dns_error", str(error.strerror)) from error
        except OSError as error:
            raise Unreachable.by(error) from error

    def _judged(self, addresses: list[Address], port: int) -> list[Address]:
        reasons = []
        allowed = []
        for address in interleaved(addresses):
            reason = self._policy.refusal(address, port)
            if reason is None:
                allowed.append(address)
            else:
                reasons.append(f"{address} is {reason}")
        if not allowed:
            raise Unreachable(403, "destination_ip_prohibited", "; ".join(reasons))
        return allowed


def _endpoint(address: Address, port: int) -> Endpoint:
    return (socket.AF_INET if address.version == 4 else socket.AF_INET6), (str(address), port)
