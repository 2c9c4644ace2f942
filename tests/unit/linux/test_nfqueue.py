"""What is understood of queued packets; the queue itself is tried in tests/linux."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.linux.nfqueue import tcp_ends

_SEGMENT = struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 0x50, 2, 1000, 0, 0)
_V4 = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, 6, 0) + bytes([198, 18, 0, 1, 203, 0, 113, 20])
_V6_ENDS = socket.inet_pton(socket.AF_INET6, "fd68::1") + socket.inet_pton(socket.AF_INET6, "2001:db8::7")


def _v6(following: int) -> bytes:
    return struct.pack("!IHBB", 6 << 28, 20, following, 64) + _V6_ENDS


def test_ipv4() -> None:
    assert tcp_ends(_V4 + _SEGMENT) == (("198.18.0.1", 40000), ("203.0.113.20", 443))


def test_ipv4_with_options() -> None:
    packet = bytes([0x46]) + _V4[1:] + bytes([1, 1, 1, 0]) + _SEGMENT
    assert tcp_ends(packet)[1] == ("203.0.113.20", 443)


def test_ipv6() -> None:
    assert tcp_ends(_v6(6) + _SEGMENT) == (("fd68::1", 40000), ("2001:db8::7", 443))


def test_ipv6_with_extension_headers() -> None:
    packet = _v6(0) + bytes([60, 0, *[0] * 6]) + bytes([6, 1, *[0] * 14]) + _SEGMENT
    assert tcp_ends(packet)[0] == ("fd68::1", 40000)


@pytest.mark.parametrize(
    "packet", [b"", _V4, _V4[:9] + b"\x11" + _V4[10:] + _SEGMENT, _V4[:7] + b"\1" + _V4[8:] + _SEGMENT, _v6(17), _v6(0)]
)
def test_what_is_no_head_of_a_segment(packet: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        tcp_ends(packet)


@given(st.binary(max_size=100))
def test_whatever_comes_is_understood_or_refused(packet: bytes) -> None:
    with contextlib.suppress(ValueError):
        tcp_ends(packet)
