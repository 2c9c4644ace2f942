"""Which table of routes a packet is looked up in, by where it comes from (ip-rule(8), linux/fib_rules.h)."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Network, IPv6Network
from typing import Union

from htcondor_vpn.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, Request, attribute, attribute_u32

Network = Union[IPv4Network, IPv6Network]

_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_FRA_SRC, _FRA_PRIORITY = 2, 6
_TO_TABLE, _UNREACHABLE = 1, 7


def add_rule(priority: int, source: Network, table: int | None) -> Request:
    """Has what comes from `source` look in `table` (1 to 255) for its route, or be unreachable if that is None.

    The rule of the lowest priority number counts whose table has a route. EEXIST for a rule that is there already.
    """
    return Request(
        _RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _rule(priority, source, table), f"add the rule {priority} for {source}"
    )


def delete_rule(priority: int, source: Network, table: int | None) -> Request:
    """Takes back what `add_rule` made; ENOENT if there is no such rule."""
    return Request(_RTM_DELRULE, 0, _rule(priority, source, table), f"delete the rule {priority} for {source}")


def _rule(priority: int, source: Network, table: int | None) -> bytes:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    action = _UNREACHABLE if table is None else _TO_TABLE
    header = struct.pack("=8BI", family, 0, source.prefixlen, 0, table or 0, 0, 0, action, 0)
    return header + attribute(_FRA_SRC, source.network_address.packed) + attribute_u32(_FRA_PRIORITY, priority)
