"""One ICMP echo request and its reply, by a socket that needs no privilege (icmp(7), `ping_group_range`)."""

from __future__ import annotations

import asyncio
import socket
import struct

from htcondor_vpn.wire.dialing import HOST, Endpoint, SocketSource
from htcondor_vpn.wire.unreachable import Unreachable

#: The longest payload of an echo request, bytes: IPv4's longest packet, less the two headers.
MAX_PAYLOAD_BYTES = 65507

# linux/in.h and linux/in6.h; Python's socket module lacks them.
_IP_RECVERR = 11
_IPV6_RECVERR = 25

_HEAD = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number; the kernel sets two of them
_PROTOCOLS = {socket.AF_INET: (socket.IPPROTO_ICMP, 8, 0), socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128, 129)}


async def ping(endpoint: Endpoint, payload: bytes, source: SocketSource = HOST) -> bytes:
    """Sends `payload` to the address of `endpoint` and returns what came back.

    Raises OSError for what ICMP says instead, and `Unreachable` (501) where this host may not. It may wait for ever:
    put a deadline around it.
    """
    family, address = endpoint
    protocol, request, answer = _PROTOCOLS[family]
    try:
        sock = await source.open(family, socket.SOCK_DGRAM, protocol)
    except PermissionError:
        raise Unreachable(501, "proxy_configuration_error", "sysctl net.ipv4.ping_group_range forbids it") from None
    with sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)  # or "host unreachable" would go unsaid
        sock.connect(address)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, _HEAD.pack(request, 0, 0, 0, 1) + payload)
        while True:
            data = await loop.sock_recv(sock, _HEAD.size + MAX_PAYLOAD_BYTES)
            if len(data) >= _HEAD.size and data[0] == answer:
                return data[_HEAD.size :]
