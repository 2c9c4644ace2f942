"""Route netlink (rtnetlink(7)) by hand: many requests in one system call, in whichever namespace the socket was made.

Wiring a job takes about twenty requests. Sent as one batch they take the kernel one to two milliseconds; pyroute2 does
the same one by one in five, needs 20 MB for it, and its synchronous form cannot be used inside an event loop.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_ECHO = 0x008
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x010
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_LISTINGS = 5
_MOST_AT_ONCE = 100  # so that their answers fit into the socket's buffer
_ANSWER_SECONDS = 10.0  # the kernel answers before send() returns; this is for a kernel in trouble


class NetlinkError(OSError):
    """The kernel refused a request; `errno` is its, the text says what was asked and what the kernel said to it."""


class Request(NamedTuple):
    """One request: `kind` (RTM_…), further `flags`, the `body`, and `what` it does in words, for errors."""

    kind: int
    flags: int
    body: bytes
    what: str


def attribute(kind: int, value: bytes) -> bytes:
    """Encodes one attribute (struct nlattr), padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attribute_u32(kind: int, value: int) -> bytes:
    """Encodes an unsigned 32-bit attribute in host order."""
    return attribute(kind, struct.pack("=I", value))


def attribute_text(kind: int, value: str) -> bytes:
    """Encodes a text attribute, with the NUL that the kernel wants."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Decodes a run of attributes: their kinds (without the flag bits) and values."""
    at, end = 0, len(data)
    while end - at >= 4:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not 4 <= length <= end - at:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


class Netlink:
    """A route netlink socket. It stays in the network namespace in which it was made, wherever its owner goes."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(_ANSWER_SECONDS)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 0

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, requests: Sequence[Request], besides: Container[int] = ()) -> None:
        """Has the kernel carry out `requests` in their order; raises `NetlinkError` for the first that failed.

        The kernel goes on after a failure, so the caller has to undo what succeeded. The errors `besides` (errno) are
        none.
        """
        failure: NetlinkError | None = None
        for begin in range(0, len(requests), _MOST_AT_ONCE):
            found = self._do_at_once(requests[begin : begin + _MOST_AT_ONCE], besides)
            failure = failure or found
        if failure is not None:
            raise failure

    def _do_at_once(self, requests: Sequence[Request], besides: Container[int]) -> NetlinkError | None:
        first = self._sequence + 1
        batch = bytearray()
        for request in requests:
            self._sequence += 1
            flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
            batch += _HEADER.pack(16 + len(request.body), request.kind, flags, self._sequence, 0) + request.body
        self._socket.send(batch)
        failure: NetlinkError | None = None
        answered = 0
        while answered < len(requests):
            for kind, flags, sequence, body in self._messages():
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                answered += 1
                number = -struct.unpack_from("=i", body)[0]
                if number and number not in besides and failure is None:
                    said = _extended(flags, body) or os.strerror(number)
                    failure = NetlinkError(number, f"{requests[sequence - first].what}: {said}")
        return failure

    def dump(self, kind: int, body: bytes) -> Iterable[bytes]:
        """Asks for all objects of a kind (RTM_GET…) and returns their bodies; raises `NetlinkError`.

        Where somebody else changes them meanwhile, it asks again: the kernel may have left out others for that.
        """
        for _ in range(_LISTINGS):
            found, whole = self._list(kind, body)
            if whole:
                break
        return found

    def _list(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(_HEADER.pack(16 + len(body), kind, flags, self._sequence, 0) + body)
        found: list[bytes] = []
        whole = True
        while True:
            for answer, has, sequence, payload in self._messages():
                if sequence != self._sequence:
                    continue
                whole = whole and not has & NLM_F_DUMP_INTR
                if answer == NLMSG_DONE:
                    return found, whole
                if answer == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", payload)[0]
                    raise NetlinkError(number, f"list objects of kind {kind}: {os.strerror(number)}")
                found.append(payload)

    def get(self, kind: int, body: bytes, what: str, flags: int = 0) -> bytes:
        """Asks for one object (RTM_GET…) and returns its body; raises `NetlinkError`."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0) + body)
        while True:
            for answer, _, sequence, payload in self._messages():
                if sequence != self._sequence:
                    continue
                if answer == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", payload)[0]
                    raise NetlinkError(number, f"{what}: {os.strerror(number)}")
                return payload

    def _messages(self) -> list[tuple[int, int, int, bytes]]:
        """Receives one datagram: kind, flags, sequence number and body of each message in it."""
        data = self._socket.recv(1 << 18)
        found = []
        while len(data) >= 16:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            if not 16 <= length <= len(data):
                break
            found.append((kind, flags, sequence, data[16:length]))
            data = data[(length + 3) & ~3 :]
        return found


def _extended(flags: int, body: bytes) -> str:
    """The kernel's own words about an error (NETLINK_EXT_ACK), where it has any."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    skip = 20 if flags & NLM_F_CAPPED else 4 + struct.unpack_from("=I", body, 4)[0]
    for kind, value in attributes(body[skip:]):
        if kind == NLMSGERR_ATTR_MSG:
            return value.rstrip(b"\0").decode(errors="replace")
    return ""
