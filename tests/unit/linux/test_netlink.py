from __future__ import annotations

import socket
import struct

from htcondor_vpn.linux import netlink
from htcondor_vpn.linux.netlink import Netlink

_HEADER = struct.Struct("=IHHII")
_KIND = 18  # RTM_GETLINK


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def test_a_listing_that_was_disturbed_is_made_again() -> None:
    """The kernel's answers are made here: it decides by itself when it has been disturbed."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Netlink() as asked, ours, kernel:
        asked._socket.close()
        asked._socket = ours
        disturbed = netlink.NLM_F_DUMP_INTR
        kernel.send(message(16, 0, 1, b"one.") + message(16, disturbed, 1, b"two.") + message(3, disturbed, 1, b""))
        kernel.send(b"".join(message(16, 0, 2, body) for body in (b"one.", b"two.", b"six.")) + message(3, 0, 2, b""))
        assert list(asked.dump(_KIND, b"")) == [b"one.", b"two.", b"six."]
        assert kernel.recv(100)
        assert kernel.recv(100)


def test_one_that_is_disturbed_for_ever_is_what_was_found() -> None:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Netlink() as asked, ours, kernel:
        asked._socket.close()
        asked._socket = ours
        for sequence in range(1, 20):
            kernel.send(message(16, 0, sequence, b"one.") + message(3, netlink.NLM_F_DUMP_INTR, sequence, b""))
        assert list(asked.dump(_KIND, b"")) == [b"one."]
