"""What an engine is: the process on the host's side of the tunnel, and what it tells its supervisor."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from htcondor_vpn.errors import VpnError, by_name

#: How much of a reason, and how many carriers, an engine tells: a report is one message on a channel.
REASON_LENGTH = 120
MOST_CARRIERS = 32


@dataclass(frozen=True)
class RouteReport:
    """A rule of HTCONDOR_VPN_ROUTES: what goes `to` there goes `by` that; `flows` is how often it was asked for.

    While what it leads to is not `up`, `reason` says why.
    """

    to: str
    by: str
    up: bool = True
    flows: int = 0
    reason: str = ""


@dataclass(frozen=True)
class CarrierReport:
    """One of several gateways (or proxies, …), by `name`: its `load`, 0 to 1, and whether it drains, as it says.

    While it is not `up`, `reason` says why.
    """

    name: str
    up: bool = True
    load: float = 0.0
    draining: bool = False
    reason: str = ""


@dataclass(frozen=True)
class EngineReport:
    """What an engine knows now. Rates in Mbit/s, latency in ms, bytes are payload since the engine's start.

    `engine` is the kind in use, where it chooses among several, and `gateway` what carries. `families` are those that
    can be reached, of "ipv4" and "ipv6", and `udp` whether datagrams are carried, be it to some destinations only;
    `transport` is how packets travel, with an engine that sends packets. While `up` is false, `error` names the class
    in `errors.py`, and `cause` and `remedy` say why. `carriers` are all that the engine in use has, also those that do
    not work.
    """

    up: bool
    engine: str = ""
    gateway: str = ""
    families: tuple[str, ...] = ()
    udp: bool = False
    transport: str = ""
    latency_ms: float | None = None
    up_mbps: float | None = None
    down_mbps: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    flows: int = 0
    error: str = ""
    cause: str = ""
    remedy: str = ""
    carriers: tuple[CarrierReport, ...] = ()
    routes: tuple[RouteReport, ...] = ()

    def message(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> EngineReport:
        routes = tuple(RouteReport(**route) for route in message["routes"])
        carriers = tuple(CarrierReport(**carrier) for carrier in message["carriers"])
        families = tuple(message["families"])
        return cls(**{**message, "families": families, "carriers": carriers, "routes": routes})

    def exception(self) -> VpnError:
        return by_name(self.error, self.cause, self.remedy)


@dataclass
class InnerSockets:
    """The sockets that live in the inner namespace and are served by the engine outside of it.

    `flows` are transparent TCP listeners: the local address of an accepted connection is where it wanted to go.
    `datagrams`, `answers` and `errors` are the `DatagramSockets` of each IP version, if UDP is carried.
    `dns_datagrams` and `dns_streams` are bound to the resolver's addresses. `queues` is where SYNs wait for the far
    side's answer, if they do, and `echoes` where ICMP echo requests do; `echo_replies` answer these in each IP version.
    """

    flows: list[socket.socket] = field(default_factory=list)
    dns_datagrams: list[socket.socket] = field(default_factory=list)
    dns_streams: list[socket.socket] = field(default_factory=list)
    datagrams: list[socket.socket] = field(default_factory=list)
    answers: list[socket.socket] = field(default_factory=list)
    errors: list[socket.socket] = field(default_factory=list)
    queues: list[socket.socket] = field(default_factory=list)
    echoes: list[socket.socket] = field(default_factory=list)
    echo_replies: list[socket.socket] = field(default_factory=list)

    def all(self) -> list[socket.socket]:
        return [sock for kind in fields(self) for sock in getattr(self, kind.name)]

    def kinds(self) -> list[str]:
        """The kind of each socket in `all()`, so that they can be handed over together."""
        return [kind.name for kind in fields(self) for _ in getattr(self, kind.name)]

    @classmethod
    def adopt(cls, descriptors: list[int], kinds: list[str]) -> InnerSockets:
        """Makes it of descriptors that came over a channel, and `kinds()` of the sender."""
        sockets = cls()
        for descriptor, kind in zip(descriptors, kinds):
            getattr(sockets, kind).append(socket.socket(fileno=descriptor))
        return sockets


class Engine(Protocol):
    """A tunnel's engine. Made in a process of its own, it runs until it is cancelled."""

    async def run(self, report: Callable[[EngineReport], None]) -> None:
        """Connects, keeps connected, and reports each change at once, and its counters every few seconds."""

    def serve(self, sockets: InnerSockets) -> None:
        """Starts to carry what arrives at `sockets`; called once, when the inner namespace is ready."""

    async def finish(self) -> None:
        """Takes no more connections, and gives those whose application has ended a few seconds to deliver."""
