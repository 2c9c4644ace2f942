"""What jobs are told, read from the packets that tell it: a name's addresses, or that a datagram goes nowhere."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from htcondor_vpn.jobnet.counting.table import Peer
from htcondor_vpn.linux.nfqueue import Opened, opened
from htcondor_vpn.special_addresses import Address

_DNS_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")  # type, class, time to live, length
_A, _AAAA, _IN = 1, 28, 1
_UDP_HEADER_BYTES, _ICMP_HEADER_BYTES = 8, 8
_POINTER = 0xC0
_MOST_RECORDS = 100

_UNREACHABLE_V4 = {3: "the far side has no such port", 13: "prohibited, or the tunnel is down"}
_UNREACHABLE_V6 = {4: "the far side has no such port", 1: "prohibited, or the tunnel is down"}


class Named(NamedTuple):
    """A name that was looked up, and addresses that it was said to have."""

    name: str
    addresses: tuple[Address, ...]


class Undelivered(NamedTuple):
    """A datagram that could not be delivered to `peer`."""

    peer: Peer
    reason: str


def told(packet: bytes) -> Named | Undelivered | None:
    """Reads a packet to a job, from IP's header on; None says that it is neither, or cut off."""
    try:
        found = opened(packet)
        if found.protocol == socket.IPPROTO_UDP:
            return _named(found.body[_UDP_HEADER_BYTES:])
        if found.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
            return _undelivered(found)
    except (ValueError, IndexError, struct.error):
        return None
    return None


def _named(message: bytes) -> Named | None:
    _, _, questions, answers, _, _ = _DNS_HEADER.unpack_from(message)
    if questions != 1:
        return None
    name, at = _question(message)
    at += 4
    addresses = []
    for _ in range(min(answers, _MOST_RECORDS)):
        at = _after_name(message, at)
        kind, network, _, length = _RECORD.unpack_from(message, at)
        data = message[at + _RECORD.size : at + _RECORD.size + length]
        at += _RECORD.size + length
        if network == _IN and (kind, len(data)) in ((_A, 4), (_AAAA, 16)):
            addresses.append(IPv4Address(data) if kind == _A else IPv6Address(data))
    return Named(name, tuple(addresses)) if name and addresses else None


def _question(message: bytes) -> tuple[str, int]:
    labels, at = [], _DNS_HEADER.size
    while length := message[at]:
        if length & _POINTER:
            raise ValueError("a question is not compressed")
        label = message[at + 1 : at + 1 + length]
        labels.append("".join(chr(c) if 33 <= c < 127 else "?" for c in label))
        at += 1 + length
    return ".".join(labels).lower(), at + 1


def _after_name(message: bytes, at: int) -> int:
    while length := message[at]:
        if length & _POINTER:
            return at + 2
        at += 1 + length
    return at + 1


def _undelivered(found: Opened) -> Undelivered | None:
    code = found.body[1]
    inside = opened(found.body[_ICMP_HEADER_BYTES:])
    if inside.protocol != socket.IPPROTO_UDP:
        return None  # what refuses a connection is counted by the rules
    (port,) = struct.unpack_from("!H", inside.body, 2)
    words = _UNREACHABLE_V4 if found.protocol == socket.IPPROTO_ICMP else _UNREACHABLE_V6
    return Undelivered(Peer(ip_address(inside.destination), "udp", port), words.get(code, "unreachable"))
