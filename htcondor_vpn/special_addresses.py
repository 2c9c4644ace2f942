"""Addresses that lead to the host that uses them alone, or to no single host (RFC 6890, IANA's registries)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Union

Address = Union[IPv4Address, IPv6Address]
Network = Union[IPv4Network, IPv6Network]

#: Never to be reached on another's behalf, and why. The first match counts.
NEVER: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(text), reason)
    for text, reason in {
        "0.0.0.0/8": "unspecified",
        "127.0.0.0/8": "loopback",
        "169.254.0.0/16": "link-local",
        "192.0.0.0/24": "reserved",
        "224.0.0.0/4": "multicast",
        "255.255.255.255/32": "broadcast",
        "240.0.0.0/4": "reserved",
        "::/128": "unspecified",
        "::1/128": "loopback",
        "fe80::/10": "link-local",
        "fec0::/10": "reserved",
        "ff00::/8": "multicast",
    }.items()
)

_NAT64 = IPv6Network("64:ff9b::/96")


def never(address: Address) -> str | None:
    """Returns why `address`, or an IPv4 address inside it, is never to be reached; None if it may be."""
    for each in (address, *embedded(address)):
        for network, reason in NEVER:
            if each in network:
                return reason
    return None


def embedded(address: Address) -> Iterator[IPv4Address]:
    """Yields the IPv4 addresses inside an IPv6 address to which a packet for it may end up.

    IPv4-mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056), and Teredo's server and client (RFC 4380).
    """
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    elif address in _NAT64:
        yield IPv4Address(int(address) & 0xFFFFFFFF)
    elif address.sixtofour:
        yield address.sixtofour
    elif address.teredo:
        yield from address.teredo


def unmapped(address: Address) -> Address:
    """Returns the IPv4 address of an IPv4-mapped one, any other as it is."""
    return getattr(address, "ipv4_mapped", None) or address
