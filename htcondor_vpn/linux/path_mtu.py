"""How large a packet may be on its way to a host, as far as this host knows (ip(7), ipv6(7))."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

# linux/in.h and linux/in6.h; Python's socket module lacks them.
_IP_MTU_DISCOVER, _IP_PMTUDISC_OMIT = 10, 5
_IP_MTU, _IPV6_MTU = 14, 24

_ANY_PORT = 9


def datagram_socket(family: int) -> socket.socket:
    """Returns a UDP socket for packets of a tunnel; with IPv4, routers on the way may cut them into fragments.

    So a path with a small MTU slows the tunnel down and does not break it, whether anyone tells that it is small or
    not. With IPv6 it is the sender that has to know. Raises OSError.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_OMIT)
    return sock


def path_mtu(address: IPv4Address | IPv6Address) -> int | None:
    """Returns the MTU towards `address`, by the link and by what routers have told; None if there is no route."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    option = (socket.IPPROTO_IP, _IP_MTU) if address.version == 4 else (socket.IPPROTO_IPV6, _IPV6_MTU)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), _ANY_PORT))
            return sock.getsockopt(*option)
    except OSError:
        return None
