"""What a router says of a packet that is larger than the next link's MTU: ICMP (RFC 1191), ICMPv6 (RFC 4443, 3.2)."""

from __future__ import annotations

import struct

ETHERNET_BYTES = 14
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_IPV4_QUOTED_BYTES, _IPV6_QUOTED_BYTES = 28, 1232  # the latter fits into IPv6's smallest MTU
_ICMP, _ICMPV6 = 1, 58
_HOPS = 64


def too_big(frame: bytes, mtu: int) -> bytes | None:
    """Returns the Ethernet frame that tells the sender of `frame`, in its receiver's name; None if it is not IP."""
    header = frame[6:12] + frame[:6] + frame[12:14]
    packet = frame[ETHERNET_BYTES:]
    if frame[12:14] == _IPV4:
        quoted = packet[:_IPV4_QUOTED_BYTES]
        body = _summed(struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted, b"")
        start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, _HOPS, _ICMP, 0) + packet[16:20] + packet[12:16]
        return header + start[:10] + struct.pack("!H", _checksum(start)) + start[12:] + body
    if frame[12:14] == _IPV6:
        quoted = packet[:_IPV6_QUOTED_BYTES]
        ends = packet[24:40] + packet[8:24]
        body = struct.pack("!BBHI", 2, 0, 0, mtu) + quoted
        body = _summed(body, ends + struct.pack("!II", len(body), _ICMPV6))
        return header + struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, _HOPS) + ends + body
    return None


def _summed(message: bytes, pseudo_header: bytes) -> bytes:
    return message[:2] + struct.pack("!H", _checksum(pseudo_header + message)) + message[4:]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
