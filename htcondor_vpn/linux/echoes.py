"""ICMP echo (RFC 792, RFC 4443): requests as they are caught, the replies to them, and who may send requests."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.linux.datagrams import Way, internet_checksum, send_back
from htcondor_vpn.linux.nfqueue import opened

#: The types of a request and a reply, of ICMP and of ICMPv6.
_TYPES = {socket.IPPROTO_ICMP: (8, 0), socket.IPPROTO_ICMPV6: (128, 129)}

_HIGHEST_GROUP = (1 << 31) - 1

_HEAD = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number


class EchoRequest(NamedTuple):
    """A request, by whom and to whom; `identifier` and `sequence` are what its sender knows the reply by."""

    source: str
    destination: str
    identifier: int
    sequence: int
    payload: bytes


def parse_request(packet: bytes) -> EchoRequest:
    """Takes an IP packet apart; raises ValueError for one that is no whole echo request."""
    source, destination, protocol, body = opened(packet)
    if protocol not in _TYPES or len(body) < _HEAD.size:
        raise ValueError("no ICMP message")
    kind, code, _, identifier, sequence = _HEAD.unpack_from(body)
    if (kind, code) != (_TYPES[protocol][0], 0):
        raise ValueError("no echo request")
    return EchoRequest(source, destination, identifier, sequence, body[_HEAD.size :])


def reply(sock: socket.socket, request: EchoRequest, interface: int, payload: bytes) -> None:
    """Sends the reply in the name of the request's destination, by a `make_icmp_socket`; raises OSError."""
    protocol = socket.IPPROTO_ICMPV6 if sock.family == socket.AF_INET6 else socket.IPPROTO_ICMP
    kind = _TYPES[protocol][1]
    head = _HEAD.pack(kind, 0, 0, request.identifier, request.sequence)
    if protocol == socket.IPPROTO_ICMP:  # for ICMPv6 the kernel does it
        head = _HEAD.pack(kind, 0, internet_checksum(head, payload), request.identifier, request.sequence)
    send_back(sock, Way((request.source, 0), (request.destination, 0), interface), [head, payload])


def allow_echoes() -> None:
    """Lets programs without privilege send echo requests in this network namespace (icmp(7)), where that can be.

    A new namespace lets nobody, and what runs in it here can gain no privilege. Without it there is no ping, and
    everything else is as it was. An ordinary user can name its own group alone; root does not know the job's.
    """
    for groups in (f"0 {_HIGHEST_GROUP}", f"{os.getgid()} {os.getgid()}"):
        with suppress(OSError):
            Path("/proc/sys/net/ipv4/ping_group_range").write_text(groups)
            return
