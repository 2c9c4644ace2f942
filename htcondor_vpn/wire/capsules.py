"""Capsules (RFC 9297) that carry UDP payloads (RFC 9298): what becomes of an HTTP/1.1 connection after its upgrade.

A capsule is a type, a length, and a value; types that the receiver does not know are skipped. UDP payloads are the
values of DATAGRAM capsules, behind a context id that is 0.
"""

from __future__ import annotations

from htcondor_vpn.wire.http import ProtocolError

#: RFC 9297, section 3.5.
DATAGRAM = 0x00

#: Of our own, without a value: the payload before it met an ICMP port unreachable. Its number is a random one of the
#: 62-bit range, as RFC 9297 (section 5.4) has it, and others' software skips it.
PORT_UNREACHABLE = 0x1D5F_3B72_A94C_E608

#: The longest UDP payload (RFC 9298, section 5); more ends the connection.
MAX_PAYLOAD_BYTES = 65527

_UDP_CONTEXT = b"\0"
_KNOWN = {DATAGRAM, PORT_UNREACHABLE}


def encode_integer(value: int) -> bytes:
    """A variable-length integer of RFC 9000, section 16, in its shortest form; 0 <= `value` < 2**62."""
    for exponent, bits in enumerate((6, 14, 30, 62)):
        if value < 1 << bits:
            return (value | exponent << (8 << exponent) - 2).to_bytes(1 << exponent, "big")
    raise ValueError(f"{value} has more than 62 bits")


def encode(kind: int, value: bytes = b"") -> bytes:
    """One capsule."""
    return encode_integer(kind) + encode_integer(len(value)) + value


def encode_payload(payload: bytes) -> bytes:
    """The DATAGRAM capsule with a UDP payload."""
    return b"".join((b"\0", encode_integer(len(payload) + 1), _UDP_CONTEXT, payload))


class CapsuleDecoder:
    """Takes a stream in pieces of any size; keeps at most one capsule of a known type."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._offset = 0  # what lies before it is done with
        self._skip_bytes = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Returns type and value of the known capsules that are whole now; DATAGRAM's value is the UDP payload.

        Raises `ProtocolError` for a payload that no datagram can hold.
        """
        self._data += data
        capsules = []
        while (capsule := self._next()) is not None:
            kind, value = capsule
            if kind != DATAGRAM:
                capsules.append(capsule)
            elif value[:1] == _UDP_CONTEXT:  # others no one has registered
                capsules.append((kind, value[1:]))
        del self._data[: self._offset]
        self._offset = 0
        return capsules

    def _next(self) -> tuple[int, bytes] | None:
        """The next known capsule, None if it is not whole yet."""
        while True:
            step = min(self._skip_bytes, len(self._data) - self._offset)
            self._offset += step
            self._skip_bytes -= step
            kind, after = self._integer(self._offset)
            length, start = self._integer(after)
            if start > len(self._data):
                return None
            if kind not in _KNOWN:
                self._skip_bytes = start - self._offset + length
                continue
            if length > MAX_PAYLOAD_BYTES + len(_UDP_CONTEXT):
                raise ProtocolError(f"a datagram of {length} bytes")
            end = start + length
            if end > len(self._data):
                return None
            self._offset = end
            return kind, bytes(self._data[start:end])

    def _integer(self, offset: int) -> tuple[int, int]:
        """The integer at `offset`, and where it ends: past the end of the data if it is not whole."""
        if offset >= len(self._data):
            return 0, offset + 1
        size = 1 << (self._data[offset] >> 6)
        mask = (1 << 8 * size - 2) - 1
        return int.from_bytes(self._data[offset : offset + size], "big") & mask, offset + size
