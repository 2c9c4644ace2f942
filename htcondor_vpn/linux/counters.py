"""What a link has carried, by the kernel's own 64-bit counters (struct rtnl_link_stats64)."""

from __future__ import annotations

import struct
from typing import NamedTuple


class Counters(NamedTuple):
    """Bytes (Ethernet headers included) and packets that a link received and sent since it was made."""

    received_packets: int
    sent_packets: int
    received_bytes: int
    sent_bytes: int


def parse_counters(data: bytes) -> Counters:
    """Decodes the beginning of a struct rtnl_link_stats64; raises struct.error when it is too short."""
    return Counters(*struct.unpack_from("=4Q", data))
