"""Packets that wait for a verdict: netfilter's queue (NFQUEUE), spoken to by hand over nfnetlink.

A rule puts packets into a numbered queue of its network namespace; whoever holds the queue's socket is shown them and
lets each go on, perhaps with a mark for later rules, or drops it. Without such a socket the kernel drops them.

The socket is made inside a network namespace with its capabilities. It may be used from outside by the owner of that
user namespace, who has all capabilities over it (user_namespaces(7)). Source: linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from htcondor_vpn.linux.datagrams import make_room
from htcondor_vpn.linux.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attribute, attributes

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_NO_ENOBUFS = 5

_SUBSYSTEM = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM | kind for kind in range(4))
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN = 1, 2, 3
_BIND = 1
_COPY_PACKET = 2
_PACKET_HDR, _VERDICT_HDR, _MARK, _IFINDEX_INDEV, _PAYLOAD = 1, 2, 3, 5, 10
_NF_DROP, _NF_ACCEPT = 0, 1

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_PORTS = struct.Struct("!HH")
_GENERAL = struct.Struct("!BBH")  # struct nfgenmsg: family, version, the queue's number
_ACKNOWLEDGEMENT = struct.Struct("=IHHIIi")  # struct nlmsghdr, and the negative errno
_ANSWER_SECONDS = 10.0  # the kernel answers before send() returns; this is for a kernel in trouble

_RECEIVE_BUFFER_BYTES = 4 << 20
_MESSAGE_BYTES = 1 << 17

#: Of a packet, what is shown unless more is asked for: the headers of IP and TCP, with some options.
HEADERS_BYTES = 256
WHOLE_BYTES = 0xFFFF

_FIXED_V6_BYTES = 40
_EXTENSION_HEADERS = (0, 43, 60)  # hop-by-hop options, routing, destination options (RFC 8200)

#: Address and port of the source, and of the destination.
Ends = tuple[tuple[str, int], tuple[str, int]]


class Packet(NamedTuple):
    """A packet that waits: its number in the queue, the link that it came by, and its first bytes, from IP's on.

    `mark` is the one that it has already.
    """

    number: int
    interface: int
    payload: bytes
    mark: int = 0


class PacketQueue:
    """The user's side of a queue; `sock` is of `make_socket`.

    Packets wait for whoever uses the socket next. What was shown to another one before us, who left it without a
    verdict, is dropped as soon as we are shown something.
    """

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.socket, self._number = sock, number
        self._shown = False
        sock.setblocking(False)

    def receive(self) -> Packet | None:
        """Takes the next message: a packet, or None for another one; raises BlockingIOError when there is none."""
        data = self.socket.recv(_MESSAGE_BYTES)
        _, kind, _, _, _ = _HEADER.unpack_from(data)
        if kind != _PACKET:
            return None  # a packet has gone before its verdict came
        found = dict(attributes(data[_HEADER.size + _GENERAL.size :]))
        (number,) = struct.unpack_from("!I", found[_PACKET_HDR])
        if not self._shown:
            self._shown = True
            if number > 1:
                self._send(_VERDICT_BATCH, attribute(_VERDICT_HDR, struct.pack("!II", _NF_DROP, number - 1)))
        (interface,) = struct.unpack("!I", found.get(_IFINDEX_INDEV, bytes(4)))
        (mark,) = struct.unpack("!I", found.get(_MARK, bytes(4)))
        return Packet(number, interface, found.get(_PAYLOAD, b""), mark)

    def accept(self, number: int, mark: int | None = None) -> None:
        """Lets a packet go on, with `mark` if it is given; raises OSError."""
        marked = b"" if mark is None else attribute(_MARK, struct.pack("!I", mark))
        self._send(_VERDICT, attribute(_VERDICT_HDR, struct.pack("!II", _NF_ACCEPT, number)) + marked)

    def drop(self, number: int) -> None:
        """Drops a packet; raises OSError."""
        self._send(_VERDICT, attribute(_VERDICT_HDR, struct.pack("!II", _NF_DROP, number)))

    def _send(self, kind: int, attributes_: bytes) -> None:
        self.socket.send(_message(kind, self._number, NLM_F_REQUEST, attributes_))


def make_socket(number: int, length: int, show_bytes: int = HEADERS_BYTES) -> socket.socket:
    """Makes this network namespace's queue `number`, and returns its socket; raises OSError.

    It holds `length` packets at most, and shows the first `show_bytes` of each. The socket keeps it for as long as it
    is open, in whatever process.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        make_room(sock, _RECEIVE_BUFFER_BYTES)
        # A packet for which there is no room is dropped, and TCP sends it again: no reason to stop reading.
        sock.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        command = attribute(_CFG_CMD, struct.pack("!BxH", _BIND, 0))
        command += attribute(_CFG_PARAMS, struct.pack("!IB", show_bytes, _COPY_PACKET))
        command += attribute(_CFG_MAXLEN, struct.pack("!I", length))
        sock.settimeout(_ANSWER_SECONDS)
        sock.send(_message(_CONFIG, number, NLM_F_REQUEST | NLM_F_ACK, command))
        _, kind, _, _, _, code = _ACKNOWLEDGEMENT.unpack_from(sock.recv(_MESSAGE_BYTES))
        if kind != NLMSG_ERROR or code:
            raise OSError(-code, os.strerror(-code))
    except OSError:
        sock.close()
        raise
    return sock


def _message(kind: int, number: int, flags: int, attributes_: bytes) -> bytes:
    body = _GENERAL.pack(socket.AF_UNSPEC, 0, number) + attributes_
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


class Opened(NamedTuple):
    """A packet without IP's header: source and destination, the protocol above, and its header and payload."""

    source: str
    destination: str
    protocol: int
    body: bytes


def opened(packet: bytes) -> Opened:
    """Takes the IP header off; raises ValueError for what has none, or is a later fragment."""
    try:
        if packet[0] >> 4 == 4:
            if packet[6] & 0x1F or packet[7]:
                raise ValueError("not the first fragment")
            source, destination = (socket.inet_ntop(socket.AF_INET, end) for end in (packet[12:16], packet[16:20]))
            return Opened(source, destination, packet[9], packet[4 * (packet[0] & 0xF) :])
        following, offset = packet[6], _FIXED_V6_BYTES
        while following in _EXTENSION_HEADERS:
            following, offset = packet[offset], offset + 8 * (packet[offset + 1] + 1)
        source, destination = (socket.inet_ntop(socket.AF_INET6, end) for end in (packet[8:24], packet[24:40]))
        return Opened(source, destination, following, packet[offset:])
    except IndexError as error:
        raise ValueError("a packet that is cut off") from error


def tcp_ends(packet: bytes) -> Ends:
    """Returns the ends of a TCP segment, from the bytes of its IP packet; raises ValueError for another packet."""
    source, destination, protocol, segment = opened(packet)
    if protocol != socket.IPPROTO_TCP or len(segment) < _PORTS.size:
        raise ValueError("not the head of a TCP segment")
    from_port, to_port = _PORTS.unpack_from(segment)
    return (source, from_port), (destination, to_port)
