"""The simulated site's addresses and names, all from ranges that are reserved for documentation or private use.

node 10.1.0.2, fd10:1::2 --- 10.1.0.1, fd10:1::1 dmz 203.0.113.1, 2001:db8:1::1 --- 203.0.113.10 … ::53 world
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple


class Pair(NamedTuple):
    """One host's or service's two addresses."""

    v4: IPv4Address
    v6: IPv6Address


def _pair(v4: str, v6: str) -> Pair:
    return Pair(IPv4Address(v4), IPv6Address(v6))


NODE = _pair("10.1.0.2", "fd10:1::2")
DMZ_INSIDE = _pair("10.1.0.1", "fd10:1::1")
DMZ_OUTSIDE = _pair("203.0.113.1", "2001:db8:1::1")

#: Who lives in the world, by name: all on one link, as several addresses of one host.
WORLD = {
    "cm": _pair("203.0.113.10", "2001:db8:1::10"),
    "http": _pair("203.0.113.20", "2001:db8:1::20"),
    "iperf": _pair("203.0.113.30", "2001:db8:1::30"),
    "dns": _pair("203.0.113.53", "2001:db8:1::53"),
}

#: The DNS zone of these names.
ZONE = "site.example"

#: What the pages call the gateway, which the node's /etc/hosts knows, and the pool, which the world's DNS server knows:
#: so their commands can be typed here as they are written there.
GATEWAY_NAME, POOL_NAME = "gateway.example.org", "pool.example.org"

V4_LENGTH, V6_LENGTH = 24, 64


def on_link(pair: Pair) -> tuple[str, str]:
    """Returns the two addresses with their prefix lengths, as `ip address add` takes them."""
    return f"{pair.v4}/{V4_LENGTH}", f"{pair.v6}/{V6_LENGTH}"
