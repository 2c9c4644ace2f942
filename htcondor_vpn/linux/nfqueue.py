"""Packets that wait for a verdict: netfilter's queue (NFQUEUE), spoken to by hand over nfnetlink.

A rule puts packets into a numbered queue of its network namespace; whoever holds the queue's socket is shown them and
lets each go on, perhaps with a mark for later rules, or drops it. Without such a socket the kernel drops them.

The socket is made inside a network namespace with its capabilities. It may be used from outside by the owner of that
user namespace, who has all capabilities over it (user_namespaces(7)). Source: linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import errno
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
_PACKET, _VERDICT, _CONFIG = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN = 1, 2, 3
_BIND, _UNBIND = 1, 2
_COPY_PACKET = 2
_PACKET_HDR, _VERDICT_HDR, _MARK, _IFINDEX_INDEV, _PAYLOAD = 1, 2, 3, 5, 10
_NF_DROP, _NF_ACCEPT = 0, 1

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_PORTS = struct.Struct("!HH")
_GENERAL = struct.Struct("!BBH")  # struct nfgenmsg: family, version, the queue's number
_CONFIGURING = 1  # the sequence number of what has to succeed; a verdict has 0

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
    """A packet that waits: its number in the queue, the link that it came by, and its first bytes, from IP's on."""

    number: int
    interface: int
    payload: bytes


class PacketQueue:
    """The user's side of the queue `number`; `sock` is of `make_socket`.

    It holds `length` packets at most, and shows the first `show_bytes` of each.
    """

    def __init__(self, sock: socket.socket, number: int, length: int, show_bytes: int = HEADERS_BYTES) -> None:
        self.socket, self._number, self._length, self._show_bytes = sock, number, length, show_bytes
        sock.setblocking(False)

    def start(self) -> None:
        """Begins to be shown the queue's packets; raises OSError where the kernel has no such thing.

        Drops what was shown to whoever used the socket before us and left it without a verdict.
        """
        self._send(_CONFIG, attribute(_CFG_CMD, struct.pack("!BxH", _UNBIND, 0)))
        while True:
            try:
                self.socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:  # the kernel has done what was asked when `send` returns
                break
        command = attribute(_CFG_CMD, struct.pack("!BxH", _BIND, 0))
        command += attribute(_CFG_PARAMS, struct.pack("!IB", self._show_bytes, _COPY_PACKET))
        command += attribute(_CFG_MAXLEN, struct.pack("!I", self._length))
        self._send(_CONFIG, command, _CONFIGURING)

    def receive(self) -> Packet | None:
        """Takes the next message: a packet, or None for another one.

        Raises BlockingIOError when there is none, and OSError if `start` has failed.
        """
        data = self.socket.recv(_MESSAGE_BYTES)
        _, kind, _, sequence, _ = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if kind == NLMSG_ERROR and sequence == _CONFIGURING:
            (code,) = struct.unpack_from("=i", body)
            if code:
                raise OSError(-code, f"packets cannot be queued: {os.strerror(-code)}")
        if kind != _PACKET:
            return None  # among others, that a packet has gone before its verdict came
        found = dict(attributes(body[_GENERAL.size :]))
        (number,) = struct.unpack_from("!I", found[_PACKET_HDR])
        (interface,) = struct.unpack("!I", found.get(_IFINDEX_INDEV, bytes(4)))
        return Packet(number, interface, found.get(_PAYLOAD, b""))

    def accept(self, number: int, mark: int | None = None) -> None:
        """Lets a packet go on, with `mark` if it is given; raises OSError."""
        marked = b"" if mark is None else attribute(_MARK, struct.pack("!I", mark))
        self._send(_VERDICT, attribute(_VERDICT_HDR, struct.pack("!II", _NF_ACCEPT, number)) + marked)

    def drop(self, number: int) -> None:
        """Drops a packet; raises OSError."""
        self._send(_VERDICT, attribute(_VERDICT_HDR, struct.pack("!II", _NF_DROP, number)))

    def _send(self, kind: int, attributes_: bytes, sequence: int = 0) -> None:
        body = _GENERAL.pack(socket.AF_UNSPEC, 0, self._number) + attributes_
        flags = NLM_F_REQUEST | (NLM_F_ACK if sequence else 0)
        self.socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body)


def make_socket(number: int) -> socket.socket:
    """Makes the socket of this network namespace's queue `number`, and tries it; raises OSError.

    It keeps the queue for as long as it is open, in whatever process.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        make_room(sock, _RECEIVE_BUFFER_BYTES)
        # A packet for which there is no room is dropped, and TCP sends it again: no reason to stop reading.
        sock.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        queue = PacketQueue(sock, number, 1)
        queue.start()
        queue.receive()
    except BlockingIOError:
        sock.close()
        raise OSError(errno.ENOPROTOOPT, "the kernel has no queue for packets") from None
    except OSError:
        sock.close()
        raise
    return sock


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
