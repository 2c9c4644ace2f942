"""Destinations of a job's traffic, as a policy writes them.

    NETWORK or NAME [tcp | udp] [port N[-M]], ...

`10.0.0.0/8`, `storage.example.org tcp port 1094-1095`, `::/0 udp port 53`. A name means the addresses it has.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from htcondor_vpn import knob_values as is_a
from htcondor_vpn.route_rules import parse_ports
from htcondor_vpn.special_addresses import Network

PROTOCOLS = ("tcp", "udp")


class Destination(NamedTuple):
    """A network or a host's name; `protocol` is "tcp", "udp" or "" for all, `ports` the first and the last, or None."""

    where: Network | str
    protocol: str = ""
    ports: tuple[int, int] | None = None

    def __str__(self) -> str:
        words = [str(self.where), *filter(None, [self.protocol])]
        if self.ports is not None:
            first, last = self.ports
            words += ["port", f"{first}-{last}" if last > first else f"{first}"]
        return " ".join(words)


@lru_cache(maxsize=4096)
def parse_destination(text: str) -> Destination:
    """Parses one destination; raises ValueError with the rest of a sentence that begins with the text."""
    first, *words = text.split() or [""]
    protocol = words.pop(0).lower() if words and words[0].lower() in PROTOCOLS else ""
    ports = None
    if words and words[0].lower() == "port":
        ports, words = parse_ports(words[1:2]), words[2:]
    if words:
        raise ValueError("is not NETWORK or NAME, then tcp or udp, then port N[-M]")
    return Destination(_where(first), protocol, ports)


def _where(text: str) -> Network | str:
    try:
        network: Network = is_a.network(text)
    except ValueError as error:
        if "/" in text or is_a.is_address(text):
            raise ValueError(f"has {text!r}, which {error}") from None
    else:
        return network
    try:
        name: str = is_a.domain(text)
    except ValueError:
        raise ValueError(f"has {text!r}, which is neither a network nor a host's name") from None
    return name
