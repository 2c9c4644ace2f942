"""Who has to share with whom what is bounded: by the link that something comes by, unless an engine knows better."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from htcondor_vpn.addresses import POINT_LINK_INDEX, link_of

#: What it returns for a source (an address) and the link (its index) that it comes by is the same for one owner.
SharedBy = Callable[[str, int], Hashable]


def by_link(source: str, interface: int) -> Hashable:
    """Each link by itself: a job's, or the pilot's own. By an execution point's come many jobs, each of one address."""
    return link_of(source) if interface == POINT_LINK_INDEX else interface
