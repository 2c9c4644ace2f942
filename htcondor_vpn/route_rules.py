"""Which way connections to certain networks take: the text of a knob, and what it means.

    NETWORK [port N[-M]] tunnel | direct | reject | gateway HOST:PORT | engine NAME, ...

Of the rules that fit a destination the one with the longest prefix holds, and among those the one with fewest ports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from htcondor_vpn import knob_values as is_a
from htcondor_vpn.addresses import INNER_V4, INNER_V6
from htcondor_vpn.special_addresses import NEVER, Address, Network

TUNNEL, DIRECT, REJECT, GATEWAY, ENGINE = "tunnel", "direct", "reject", "gateway", "engine"
_WAYS = "tunnel, direct, reject, gateway HOST:PORT or engine NAME"
_ALL_PORTS = 0, 65535
_MAX_RULES = 100  # all of them are in each report of the engine, which is one message


class RouteRule(NamedTuple):
    """Leads what goes to `network`, and to a port from `ports[0]` to `ports[1]`, to `way`.

    `gateway` is (host, port) with the way "gateway", `engine` a kind of engine with "engine".
    """

    network: Network
    ports: tuple[int, int]
    way: str
    gateway: tuple[str, int] | None = None
    engine: str = ""

    def fits(self, address: Address, port: int) -> bool:
        return self.ports[0] <= port <= self.ports[1] and address in self.network

    @property
    def leads(self) -> bool:
        """Whether it leads somewhere else than the tunnel."""
        return self.way in (DIRECT, GATEWAY, ENGINE)

    @property
    def destination(self) -> str:
        """For people: NETWORK [port N[-M]]."""
        first, last = self.ports
        if self.ports == _ALL_PORTS:
            return str(self.network)
        return f"{self.network} port {first}" + (f"-{last}" if last > first else "")

    @property
    def by(self) -> str:
        """For people, the way and its target."""
        if self.gateway is None:
            return f"{self.way} {self.engine}".strip()
        host, port = self.gateway
        return f"{self.way} [{host}]:{port}" if ":" in host else f"{self.way} {host}:{port}"


def route_rules(engines: Sequence[str]) -> Callable[[str], tuple[RouteRule, ...]]:
    """The parser of the knob's text; the rules come in the order in which they are to be asked."""
    engine = is_a.choice(*engines)

    def parse_all(text: str) -> tuple[RouteRule, ...]:
        found: dict[tuple[Network, tuple[int, int]], RouteRule] = {}
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                rule = _parse(entry, engine)
            except ValueError as error:
                raise ValueError(f"has an entry {entry!r} that {error}") from None
            if found.setdefault((rule.network, rule.ports), rule) is not rule:
                raise ValueError(f"has two entries for {rule.destination}")
        if len(found) > _MAX_RULES:
            raise ValueError(f"has more than {_MAX_RULES} entries")
        return tuple(sorted(found.values(), key=_precision))

    return parse_all


def led_beside(rules: Iterable[RouteRule], families: Collection[str]) -> list[Network]:
    """The networks that rules lead elsewhere, of a family ("ipv4", "ipv6") that the tunnel does not carry."""
    found = {rule.network: None for rule in rules if rule.leads and f"ipv{rule.network.version}" not in families}
    return list(found)


def _precision(rule: RouteRule) -> tuple[int, int]:
    return -rule.network.prefixlen, rule.ports[1] - rule.ports[0]


def _parse(entry: str, engine: is_a.Parser) -> RouteRule:
    first, *words = entry.split()
    network, ports = _network(first), _ALL_PORTS
    if words[:1] == ["port"]:
        ports, words = parse_ports(words[1:2]), words[2:]
    way, target = words[0] if words else "", words[1:]
    if way in (TUNNEL, DIRECT, REJECT) and not target:
        if way == DIRECT:
            _check_direct(network)
        return RouteRule(network, ports, way)
    if way == GATEWAY and len(target) == 1:
        return RouteRule(network, ports, way, gateway=_value(is_a.endpoint, target[0]))
    if way == ENGINE and len(target) == 1:
        return RouteRule(network, ports, way, engine=_value(engine, target[0]))
    raise ValueError(f"does not end with one of {_WAYS}")


def _network(text: str) -> Network:
    network: Network = _value(is_a.network, text)
    for inner in (INNER_V4, INNER_V6):
        if network.version == inner.version and network.subnet_of(inner):  # type: ignore[arg-type]
            raise ValueError(f"lies in {inner}, which is the pilot's own inside")
    return network


def parse_ports(words: Sequence[str]) -> tuple[int, int]:
    """Returns the first and the last of the ports N or N-M, given as one word; raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", " ".join(words), re.ASCII)
    ports = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= ports[0] <= ports[1] <= 65535:
        raise ValueError("has no port N or N-M, from 1 to 65535, behind the word port")
    return ports


def _check_direct(network: Network) -> None:
    """What is direct reaches the node's own network: not its loopback, and not everything."""
    if network.prefixlen == 0:
        raise ValueError("leads everything past the tunnel")
    for other, reason in NEVER:
        if network.version == other.version and network.subnet_of(other):  # type: ignore[arg-type]
            raise ValueError(f"is {reason}, which is never direct")


def _value(parse: is_a.Parser, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"has {text!r}, which {error}") from None
