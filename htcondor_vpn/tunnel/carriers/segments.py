"""How large the TCP segments to a server may be, where the path drops large packets and tells nobody.

A router that cannot pass a packet on says so (RFC 1191, RFC 8201), and the kernel makes smaller ones; but where a
firewall drops that message, connections open and then carry nothing. So the health probe is as large as packets get.
When a new connection's first one is sent in vain, the next connection tries smaller segments, in both directions: what
we announce in our SYN (TCP_MAXSEG) limits the other end too.
"""

from __future__ import annotations

import logging
import socket

from htcondor_vpn.wire.silence import repeats

#: 0: as large as the kernel thinks. Then for packets of IPv6's least MTU (RFC 8200), and of 576 bytes (RFC 791).
_SIZES = (0, 1220, 536)
_TRIES = 2

#: A question of more than one segment, but not of more than a gateway takes as a head.
_LEAST_BYTES, _MOST_BYTES = 1500, 9000

log = logging.getLogger(__name__)


class Segments:
    """What is known of the path to one server. `limit_bytes` is for the next connection there; 0 is none."""

    def __init__(self, name: str) -> None:
        self._name, self._index = name, 0
        self._passed = self._swallowed = False

    @property
    def limit_bytes(self) -> int:
        return _SIZES[self._index]

    def passed(self) -> None:
        """A question of full size was answered."""
        self._passed = True

    def given_up(self, sock: socket.socket) -> None:
        """A question on `sock` was not answered: has it not even arrived?"""
        self._swallowed |= repeats(sock) >= _TRIES

    def lost(self) -> None:
        """The server was lost: tries another size if this one never worked, and begins anew if it did."""
        if self._passed:
            self._index = 0
        elif self._swallowed:
            self._index = (self._index + 1) % len(_SIZES)
            log.warning(
                "large packets to %s vanish; trying segments of %s", self._name, self.limit_bytes or "the usual size"
            )
        self._passed = self._swallowed = False


def padding(sock: socket.socket) -> str:
    """What makes a question on `sock` larger than one segment."""
    try:
        segment_bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    except OSError:  # a UNIX socket
        segment_bytes = 0
    return "x" * max(_LEAST_BYTES, min(segment_bytes, _MOST_BYTES))
