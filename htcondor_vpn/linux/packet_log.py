"""Packets that a rule has copied to whoever listens: nfnetlink_log (nft's `log group`), spoken to by hand.

What nobody reads in time is lost, without harm to the packets. Source: linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

from htcondor_vpn.linux.datagrams import make_room
from htcondor_vpn.linux.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attribute, attributes

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_PACKET, _CONFIG = (4 << 8 | kind for kind in range(2))  # NFNL_SUBSYS_ULOG
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH = 1, 2, 5
_BIND, _COPY_PACKET = 1, 2
_IFINDEX_OUTDEV, _PAYLOAD = 5, 9

_HEADER = struct.Struct("=IHHII")
_GENERAL = struct.Struct("!BBH")  # struct nfgenmsg: family, version, the group
_ANSWER_SECONDS = 10.0
_RECEIVE_BUFFER_BYTES = 1 << 20
_MESSAGE_BYTES = 1 << 17


class LoggedPacket(NamedTuple):
    """The link that a packet leaves by, and its first bytes, from IP's on."""

    interface: int
    payload: bytes


class PacketLog:
    """Listens to `group` of the network namespace where this is made; raises OSError, EBUSY if somebody does so."""

    def __init__(self, group: int, show_bytes: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            make_room(self._socket, _RECEIVE_BUFFER_BYTES)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
            self._socket.settimeout(_ANSWER_SECONDS)
            # Each packet is told at once and not with those that come after it. The group has to be there first.
            for each in (
                attribute(_CFG_CMD, struct.pack("!B", _BIND)),
                attribute(_CFG_MODE, struct.pack("!IBx", show_bytes, _COPY_PACKET))
                + attribute(_CFG_QTHRESH, struct.pack("!I", 1)),
            ):
                body = _GENERAL.pack(socket.AF_UNSPEC, 0, group) + each
                self._socket.send(
                    _HEADER.pack(_HEADER.size + len(body), _CONFIG, NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body
                )
                self._must_be_fine(self._socket.recv(_MESSAGE_BYTES))
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    @staticmethod
    def _must_be_fine(answer: bytes) -> None:
        _, kind, *_ = _HEADER.unpack_from(answer)
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if kind == NLMSG_ERROR and code:
            raise OSError(-code, os.strerror(-code))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> list[LoggedPacket]:
        """Takes the packets of the next message; raises BlockingIOError when there is none."""
        data = self._socket.recv(_MESSAGE_BYTES)
        found = []
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _PACKET:
                parts = dict(attributes(data[_HEADER.size + _GENERAL.size : length]))
                (interface,) = struct.unpack("!I", parts.get(_IFINDEX_OUTDEV, bytes(4)))
                found.append(LoggedPacket(interface, parts.get(_PAYLOAD, b"")))
            data = data[(length + 3) & ~3 :]
        return found
