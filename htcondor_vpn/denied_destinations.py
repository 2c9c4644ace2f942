"""Destinations that a gateway denies: the text of a knob, and what it means.

    NETWORK [port N[-M]], ...
"""

from __future__ import annotations

from typing import NamedTuple

from htcondor_vpn import knob_values as is_a
from htcondor_vpn.route_rules import parse_ports
from htcondor_vpn.special_addresses import Address, Network


class DeniedDestination(NamedTuple):
    """Denies what goes to `network`, and to a port from `ports[0]` to `ports[1]` if there are any."""

    network: Network
    ports: tuple[int, int] | None = None

    def covers(self, address: Address, port: int) -> bool:
        return (self.ports is None or self.ports[0] <= port <= self.ports[1]) and address in self.network

    def __str__(self) -> str:
        if self.ports is None:
            return str(self.network)
        first, last = self.ports
        return f"{self.network} port {first}" + (f"-{last}" if last > first else "")


def _parse(entry: str) -> DeniedDestination:
    first, *words = entry.split()
    network = is_a.network(first)
    if not words:
        return DeniedDestination(network)
    if words[0] != "port" or len(words) != 2:
        raise ValueError("is not NETWORK or NETWORK port N[-M]")
    return DeniedDestination(network, parse_ports(words[1:]))


#: The parser of the knob's text: a tuple of what it denies, from entries separated by commas.
denied_destinations: is_a.Parser = is_a.list_of(_parse, ",")
