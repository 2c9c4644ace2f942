"""What an engine needs of whatever carries its flows: our gateway, or a proxy that a site has already."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, Union

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.stream import Stream

Address = Union[IPv4Address, IPv6Address]


class FlowRefused(ConnectionError):
    """A flow was not opened: `status` is the answer of `who` as HTTP's, `reason` the Proxy-Status (RFC 9209)."""

    def __init__(self, status: int, reason: str, who: str = "the gateway") -> None:
        super().__init__(f"{who} answered {status}: {reason or 'without a reason'}")
        self.status, self.reason, self.who = status, reason, who


class CarrierBusy(GatewayUnreachable):
    """A carrier works and begins nothing just now: it is full, or drains. It is worth another try in a second."""


@dataclass(frozen=True)
class Answer:
    """A good probe: the families ("ipv4", "ipv6") that can be reached, and how long the answer took, ms.

    `udp` tells whether datagrams are carried as well; `transport` how packets travel, where that may change ("dtls" or
    "tls"). A gateway tells its `load`, 0 to 1, whether it is `draining`, so that it takes no new flows, and its
    `instance`, the same by whatever address it was asked.
    """

    families: tuple[str, ...]
    latency_ms: float
    udp: bool = False
    transport: str = ""
    load: float = 0.0
    draining: bool = False
    instance: str = ""


class FarEnd(Protocol):
    """The far end of an open flow: a `Stream`, or what stands for one that another process of ours holds."""

    def abort(self) -> None:
        """Cuts the flow. Idempotent."""


class Carrier(Protocol):
    """One way out, to one host. Its errors are VpnErrors and OSErrors, ssl.SSLError and asyncio.TimeoutError."""

    #: HOST:PORT of what carries.
    name: str
    #: How long the first probe may take where that is longer than a usual one, since something has to be started.
    start_seconds: float

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        """Opens a flow; returns its far end, and what the far side has sent already.

        Raises `FlowRefused` where the carrier works and the destination does not, `GatewayUnreachable` where the
        carrier cannot be reached, so that another one may be tried.
        """

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        """Opens a way for datagrams; raises as `open_flow`."""

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """Sends an ICMP echo request with `payload`, and returns what came back; raises as `open_flow`."""

    async def ask_dns(self, query: bytes) -> bytes:
        """Sends one DNS message (wire format) and returns the answer."""

    async def probe(self) -> Answer:
        """Asks something that only a working way out answers; the caller sets the deadline."""

    async def lost(self) -> None:
        """Returns when the carrier is known to be gone, or to have said something unasked; it may never know."""

    def forget(self) -> None:
        """Lets go of what is kept (connections, addresses, processes): the next use starts from scratch."""


async def never() -> None:
    """For a carrier's `lost` that has nothing to notice it by."""
    await asyncio.Event().wait()


#: Opens a connection to a host (name or address) and port: how a proxy is used.
Connect = Callable[[str, int], Awaitable[tuple[Stream, bytes]]]
