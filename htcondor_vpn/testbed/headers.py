"""A job's bytes without the headers that its link counts with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: An Ethernet, an IPv4 and a TCP header with timestamps, which is what a packet of bulk data has.
_BYTES_A_PACKET = 14 + 20 + 32


def payload_bytes(ad: Mapping[str, Any], way: str, prefix: str = "") -> int:
    """The TCP payload over IPv4 that `ChirpNetworkBytes` and `ChirpNetworkPackets` of `ad` tell for `way` (In or Out).

    How much of the bytes is headers depends on how the kernel cut them into segments; each packet that was counted had
    its own. Options of the first packets and what is not TCP are a few bytes more.
    """
    count = int(ad[f"{prefix}ChirpNetworkBytes{way}"])
    return count - _BYTES_A_PACKET * int(ad[f"{prefix}ChirpNetworkPackets{way}"])
