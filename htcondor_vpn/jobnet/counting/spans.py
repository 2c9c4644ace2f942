"""Which of several lists of destinations an address is in first: for all addresses, as spans that do not overlap.

So one look-up by a packet's address says what a long list of rules would, however many they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.special_addresses import Address

BITS = {4: 32, 6: 128}


class Span(NamedTuple):
    """All addresses from `first` to `last`; `number` is that of the first list they are in, None if they are in none.

    `depends`: on protocol and port of a packet, too, so that `number` is that of the first list which may be it.
    """

    first: Address
    last: Address
    number: int | None
    depends: bool


def spans(lists: Sequence[Sequence[Destination]], version: int) -> list[Span]:
    """Returns spans for all addresses of IP `version` (4 or 6), in order. Of names nothing is known here."""
    address = IPv4Address if version == 4 else IPv6Address
    found: list[Span] = []
    for first, last, number, depends in _pieces(lists, version):
        if found and (found[-1].number, found[-1].depends) == (number, depends):
            found[-1] = found[-1]._replace(last=address(last))
        else:
            found.append(Span(address(first), address(last), number, depends))
    return found


def _pieces(lists: Sequence[Sequence[Destination]], version: int) -> Iterator[tuple[int, int, int | None, bool]]:
    """Between two edges of networks nothing changes."""
    edges: dict[int, list[tuple[int, bool, int]]] = defaultdict(list)
    for number, destinations in enumerate(lists):
        for where, protocol, ports in destinations:
            if not isinstance(where, str) and where.version == version:
                depends = bool(protocol) or ports is not None
                edges[int(where.network_address)].append((number, depends, 1))
                edges[int(where.broadcast_address) + 1].append((number, depends, -1))
    end = 1 << BITS[version]
    points = sorted({0, end, *edges})
    #: How many networks of each list there are here, of those that depend on nothing else and of the others.
    open_here = [[0, 0] for _ in lists]
    for point, following in zip(points, points[1:]):
        for number, depends, more in edges.get(point, ()):
            open_here[number][depends] += more
        number_here = next((number for number, counts in enumerate(open_here) if any(counts)), None)
        yield point, following - 1, number_here, number_here is not None and not open_here[number_here][False]
