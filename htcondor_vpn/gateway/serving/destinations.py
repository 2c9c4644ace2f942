"""Which addresses a pilot may reach through the gateway.

The gateway's place in a site's DMZ must not become its pilots' place: what only the gateway's own host or links can
reach is refused, and private networks are, unless the operator allows them. Judged are addresses, never names: the
connection goes to the very address that was judged, so that a name that resolves anew changes nothing.

`ipaddress`' own `is_private` is not asked: it calls documentation and benchmark ranges private and differs between
Python versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Protocol

from htcondor_vpn.denied_destinations import DeniedDestination
from htcondor_vpn.linux.routes import is_own
from htcondor_vpn.special_addresses import NEVER, Address, Network, embedded, unmapped


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


#: RFC 1918, RFC 6598, RFC 4193, and the local-use translation prefix of RFC 8215.
PRIVATE = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "64:ff9b:1::/48")

#: Global unicast (RFC 4291): what lies outside, and is not private, has no use assigned.
_GLOBAL_V6 = IPv6Network("2000::/3")


class Policy(Protocol):
    """Judges destinations."""

    def refusal(self, address: Address, port: int) -> str | None:
        """Returns why `port` of `address` must not be reached, or None if it may be. Port 0 stands for no port."""


@dataclass(frozen=True)
class Verdict:
    """Whether a destination may be reached, and which rule says so, for people."""

    allowed: bool
    rule: str


@dataclass(frozen=True)
class PublicPolicy:
    """Lets pilots reach public addresses that are not the gateway's own; `allow` adds to them, `deny` takes from them.

    The first of these that fits decides:

    1. A denied port of a network is refused.
    2. A denied network is refused, unless a network as narrow or narrower within it is allowed.
    3. Loopback, link-local, multicast, broadcast and reserved addresses are refused, whatever is allowed.
    4. Private networks, and
    5. the gateway's own addresses are refused, unless they are allowed.
    6. All else may be reached.

    An IPv6 address that embeds an IPv4 address is refused if either of the two is.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[DeniedDestination, ...] = ()

    def refusal(self, address: Address, port: int) -> str | None:
        verdict = self.judge(address, port)
        return None if verdict.allowed else verdict.rule

    def judge(self, address: Address, port: int) -> Verdict:
        """Returns what is decided about a destination, and by which rule."""
        refusal = self._denial(address, port) or self.refusal_of_range(address) or self._refusal_of_own(address)
        if refusal:
            return Verdict(False, refusal)
        allowed = self._allowed(address)
        return Verdict(True, f"allowed by {allowed}" if allowed else "public")

    def refusal_of_range(self, address: Address) -> str | None:
        """Judges by the address alone, without asking whose it is, and by no denial."""
        inner = list(embedded(address))
        if inner:
            return next(filter(None, map(self.refusal_of_range, inner)), None)
        for network, reason in NEVER:
            if address in network:
                return reason
        if any(address in network for network in PRIVATE):
            return None if self._allowed(address) else "private"
        if isinstance(address, IPv6Address) and address not in _GLOBAL_V6:
            return "reserved"
        return None

    def leaves(self, version: int) -> bool:
        """Tells whether the denials leave anything of an IP version (4, 6)."""
        everything = any(
            denied.ports is None and denied.network.version == version and denied.network.prefixlen == 0
            for denied in self.deny
        )
        return not everything or any(network.version == version for network in self.allow)

    def _denial(self, address: Address, port: int) -> str | None:
        for each in (address, *embedded(address)):
            allowed = self._allowed(each)
            for denied in self.deny:
                if denied.covers(each, port) and not (
                    denied.ports is None and allowed and allowed.prefixlen >= denied.network.prefixlen
                ):
                    return f"denied by {denied}"
        return None

    def _refusal_of_own(self, address: Address) -> str | None:
        for each in (address, *embedded(address)):
            if not self._allowed(each) and is_own(each):
                return "the gateway's own"
        return None

    def _allowed(self, address: Address) -> Network | None:
        """Returns the narrowest allowed network that holds `address`."""
        fitting = [network for network in self.allow if address in network]
        return max(fitting, key=lambda network: network.prefixlen, default=None)


def parse_target(target: str) -> tuple[Address | str, int]:
    """Splits `HOST:PORT` or `[IPV6]:PORT` into an address or a host name, and a port; raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]{1,253})):([0-9]{1,5})", target)
    if not match or not 0 < int(match[3]) < 65536:
        raise ValueError("the target is not HOST:PORT or [IPV6]:PORT")
    port = int(match[3])
    if match[1]:
        return unmapped(IPv6Address(match[1])), port
    try:
        return IPv4Address(match[2]), port
    except ValueError:
        return match[2], port


def interleaved(addresses: Iterable[Address]) -> list[Address]:
    """Orders addresses for connection attempts: families in turn, each in its given order (RFC 8305, section 4)."""
    unique = list(dict.fromkeys(map(unmapped, addresses)))
    first = [address for address in unique if address.version == unique[0].version]
    second = [address for address in unique if address.version != unique[0].version]
    ordered: list[Address] = []
    while first or second:
        for queue in (first, second):
            if queue:
                ordered.append(queue.pop(0))
    return ordered
