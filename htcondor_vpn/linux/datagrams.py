"""UDP for whatever destination, received by one socket, and answered in that destination's name.

Datagrams that the kernel's TPROXY hands to a transparent socket keep their destination. The answers have to come from
there: they leave by a raw socket that may send with any source address, to which the kernel adds the IP header and
which it cuts into fragments where a link needs that. What cannot be delivered is told as routers tell it, by ICMP.

The sockets are made inside a network namespace with its capabilities, and are used from outside without any.
"""

from __future__ import annotations

import ctypes
import enum
import socket
import struct
from typing import Any, NamedTuple

#: The longest payload of a datagram, bytes (RFC 768 below IPv6; an IPv4 header leaves 20 less).
MAX_PAYLOAD_BYTES = 65527

# linux/in.h, linux/in6.h, asm-generic/socket.h; Python's socket module lacks them.
_IP_PKTINFO = 8
_IP_TRANSPARENT = 19
_IP_ORIGDSTADDR = 20
_IPV6_TRANSPARENT = 75
_IPV6_ORIGDSTADDR = 74
_IPV6_CHECKSUM = 7
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33

_ANCILLARY_BYTES = 256
_RECEIVE_BUFFER_BYTES = 4 << 20
_UDP_HEADER = struct.Struct("!4H")
_UDP_CHECKSUM_OFFSET = 6


class Way(NamedTuple):
    """Where a datagram came from, where it wanted to go (address and port each), and the link that it came by."""

    source: tuple[str, int]
    destination: tuple[str, int]
    interface: int


class Undelivered(enum.Enum):
    """Why a datagram did not arrive: ICMP's and ICMPv6's type and code (RFC 792, RFC 1812, RFC 4443)."""

    NO_SUCH_PORT = (3, 3), (1, 4)
    PROHIBITED = (3, 13), (1, 1)


class DatagramSockets(NamedTuple):
    """The three sockets of one IP version: what is caught, the answers, and the ICMP messages."""

    caught: socket.socket
    answers: socket.socket
    errors: socket.socket


def make_sockets(family: socket.AddressFamily, port: int) -> DatagramSockets:
    """Makes them for this network namespace, TPROXY's at `port`; raises OSError without its capabilities."""
    caught = _socket(family, socket.SOCK_DGRAM, 0)
    make_room(caught, _RECEIVE_BUFFER_BYTES)
    if family == socket.AF_INET6:
        caught.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        caught.setsockopt(socket.IPPROTO_IPV6, _IPV6_ORIGDSTADDR, 1)
        caught.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        caught.bind(("::", port))
        answers = _mute(_socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP))
        answers.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _UDP_CHECKSUM_OFFSET)
        return DatagramSockets(caught, answers, make_icmp_socket(family))
    caught.setsockopt(socket.IPPROTO_IP, _IP_ORIGDSTADDR, 1)
    caught.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    caught.bind(("0.0.0.0", port))  # noqa: S104
    answers = _mute(_socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP))
    return DatagramSockets(caught, answers, make_icmp_socket(family))


def make_room(sock: socket.socket, size_bytes: int) -> None:
    """Has the kernel hold that much for a socket, or as much as the host's net.core.rmem_max allows us."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)


def _socket(family: socket.AddressFamily, kind: socket.SocketKind, protocol: int) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    sock.setblocking(False)
    return sock


def make_icmp_socket(family: socket.AddressFamily) -> socket.socket:
    """Makes a socket that sends ICMP messages in anybody's name and receives none; raises OSError as above."""
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    return _mute(_socket(family, socket.SOCK_RAW, protocol))


def _mute(sock: socket.socket) -> socket.socket:
    """A raw socket is shown all packets of its protocol: a filter (bpf(4): `ret #0`) leaves none."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
    return sock


def receive(caught: socket.socket) -> tuple[Way, bytes]:
    """Takes the next datagram; raises BlockingIOError when there is none, and ValueError for one to skip."""
    payload, ancillary, _, source = caught.recvmsg(MAX_PAYLOAD_BYTES, _ANCILLARY_BYTES)
    destination, interface = None, 0
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_ORIGDSTADDR):
            destination = socket.inet_ntop(socket.AF_INET, data[4:8]), _port(data)
        elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_ORIGDSTADDR):
            destination = socket.inet_ntop(socket.AF_INET6, data[8:24]), _port(data)
        elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            (interface,) = struct.unpack_from("=i", data)
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            (interface,) = struct.unpack_from("=i", data, 16)
    if destination is None or not destination[1] or not source[1]:
        raise ValueError("a datagram that has no way back")
    return Way(source[:2], destination, interface), payload


def _port(sockaddr: bytes) -> int:
    return int.from_bytes(sockaddr[2:4], "big")


def answer(sockets: DatagramSockets, way: Way, payload: bytes) -> None:
    """Sends `payload` back on `way`, from its destination to its source; raises OSError."""
    header = _UDP_HEADER.pack(way.destination[1], way.source[1], _UDP_HEADER.size + len(payload), 0)
    if sockets.answers.family == socket.AF_INET:
        pseudo = b"".join(map(socket.inet_aton, (way.destination[0], way.source[0]))) + struct.pack(
            "!HH", socket.IPPROTO_UDP, _UDP_HEADER.size + len(payload)
        )
        checksum = internet_checksum(pseudo, header, payload) or 0xFFFF
        header = header[:_UDP_CHECKSUM_OFFSET] + struct.pack("!H", checksum)
    send_back(sockets.answers, way, [header, payload])


def refuse(sockets: DatagramSockets, way: Way, why: Undelivered, payload_bytes: int) -> None:
    """Tells the sender of a datagram of that many bytes that it did not arrive; raises OSError."""
    length = _UDP_HEADER.size + payload_bytes
    (kind, code), (kind_v6, code_v6) = why.value
    datagram = _UDP_HEADER.pack(way.source[1], way.destination[1], length & 0xFFFF, 0)
    if sockets.errors.family == socket.AF_INET6:
        ends = b"".join(socket.inet_pton(socket.AF_INET6, host) for host in (way.source[0], way.destination[0]))
        packet = struct.pack("!IHBB", 6 << 28, length & 0xFFFF, socket.IPPROTO_UDP, 64) + ends
        send_back(sockets.errors, way, [struct.pack("!BBHI", kind_v6, code_v6, 0, 0), packet, datagram])
        return
    ends = socket.inet_aton(way.source[0]) + socket.inet_aton(way.destination[0])
    packet = struct.pack("!BBHHHBBH", 0x45, 0, (20 + length) & 0xFFFF, 0, 0, 64, socket.IPPROTO_UDP, 0) + ends
    checksum = internet_checksum(struct.pack("!BB", kind, code), packet, datagram)
    send_back(sockets.errors, way, [struct.pack("!BBHI", kind, code, checksum, 0), packet, datagram])


def send_back(sock: socket.socket, way: Way, parts: list[bytes]) -> None:
    """Sends a packet of these parts on `way` from its destination to its source; raises OSError."""
    ancillary: tuple[int, int, bytes]
    address: tuple[Any, ...]
    if sock.family == socket.AF_INET6:
        info = socket.inet_pton(socket.AF_INET6, way.destination[0]) + struct.pack("=i", way.interface)
        ancillary, address = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info), (way.source[0], 0, 0, 0)
    else:
        info = struct.pack("=i4s4x", way.interface, socket.inet_aton(way.destination[0]))
        ancillary, address = (socket.IPPROTO_IP, _IP_PKTINFO, info), (way.source[0], 0)
    sock.sendmsg(parts, [ancillary], 0, address)


def internet_checksum(*parts: bytes) -> int:
    """The Internet checksum (RFC 1071); every part but the last has an even length.

    Adding 16-bit words with end-around carry is arithmetic modulo 0xFFFF.
    """
    data = b"".join(parts)
    total = int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
    return 0xFFFF - total
