"""Echo requests as they are caught."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.linux.echoes import EchoRequest, parse_request

_V4 = struct.pack("!BBHHHBBH", 0x45, 0, 33, 0, 0, 64, 1, 0) + bytes([198, 18, 0, 1, 203, 0, 113, 20])
_V6 = struct.pack("!IHBB", 6 << 28, 13, 58, 64) + b"".join(
    socket.inet_pton(socket.AF_INET6, host) for host in ("fd68::1", "2001:db8::7")
)


def _message(kind: int, code: int = 0) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0xABCD, 7, 3) + b"hello"


def test_a_request_of_each_version() -> None:
    assert parse_request(_V4 + _message(8)) == EchoRequest("198.18.0.1", "203.0.113.20", 7, 3, b"hello")
    assert parse_request(_V6 + _message(128)) == EchoRequest("fd68::1", "2001:db8::7", 7, 3, b"hello")


@pytest.mark.parametrize(
    "packet", [_V4 + _message(0), _V4 + _message(128), _V4 + _message(8, 1), _V6 + _message(8), _V4, _V4 + b"\x08\0"]
)
def test_what_is_none(packet: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        parse_request(packet)


@given(st.binary(max_size=100))
def test_whatever_comes_is_understood_or_refused(packet: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_request(packet)
