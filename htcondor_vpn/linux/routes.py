"""What the kernel would do with a packet for an address."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from htcondor_vpn.linux.netlink import Netlink, NetlinkError, attribute

_RTM_GETROUTE = 26
_RTA_DST = 1
_ROUTE = struct.Struct("=8BI")  # struct rtmsg: its eighth byte is the type of the route

#: Types of routes, of linux/rtnetlink.h.
UNICAST, LOCAL, BROADCAST, ANYCAST = 1, 2, 3, 4

#: No route, routes of the types unreachable, prohibit and blackhole, and a kernel without this version of IP.
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}


def route_type(address: IPv4Address | IPv6Address) -> int | None:
    """Returns the type of the route to `address` in this network namespace, None if there is no route.

    `LOCAL` is what this host answers itself: any address of any of its interfaces, and all other local routes. Raises
    OSError where the kernel did not look: who asks whether an address is forbidden must not take that for a no.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    header = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    try:
        with Netlink() as netlink:
            body = header + attribute(_RTA_DST, address.packed)
            answer = netlink.get(_RTM_GETROUTE, body, f"look up the route to {address}")
    except NetlinkError as error:
        if error.errno not in _NO_WAY:
            raise
        return None
    return int(_ROUTE.unpack_from(answer)[7])


def is_own(address: IPv4Address | IPv6Address) -> bool:
    """Tells whether this host itself answers at `address`, at this moment; raises as `route_type`.

    Asks the kernel's routing, which knows more than a list of interfaces: secondary, anycast and broadcast addresses,
    and routes that make whole networks local.
    """
    return route_type(address) in (LOCAL, BROADCAST, ANYCAST)
