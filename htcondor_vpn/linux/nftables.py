"""The elements of nftables' sets and maps, over nfnetlink: added, removed and read without starting a program.

Rules are nft(8)'s business, and change seldom; elements come and go with every job. Keys are given as the kernel keeps
them: each part in its own byte order, filled up to a multiple of four bytes. Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from htcondor_vpn.linux.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NetlinkError,
    attribute,
    attribute_text,
    attributes,
)

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_ELEMENTS, _GET_ELEMENTS, _DELETE_ELEMENTS = (_SUBSYSTEM << 8 | kind for kind in (12, 13, 14))
_INET = 1  # NFPROTO_INET

_TABLE, _SET, _ELEMENTS = 1, 2, 3
_LIST_ELEMENT = 1
_KEY, _DATA, _EXPRESSION = 1, 2, 7
_VALUE, _VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_GOTO = -4
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_NESTED = 0x8000
#: An element's key and its counter's values, in the order in which the kernel tells them.
_COUNTED = (
    (_KEY, _VALUE),
    (_EXPRESSION, _EXPRESSION_DATA, _COUNTER_BYTES),
    (_EXPRESSION, _EXPRESSION_DATA, _COUNTER_PACKETS),
)

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERAL = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_U64 = struct.Struct("!Q")
_ANSWER_SECONDS = 10.0
_BUFFER_BYTES = 1 << 18
_AT_ONCE = 500
_ANSWERS_AT_ONCE = 20  # each takes some 8 KB of the socket's buffer
_DUMPS = 5


class Count(NamedTuple):
    """What a counter has seen; bytes are those of whole IP packets."""

    bytes: int
    packets: int


class Elements:
    """The elements of the sets and maps of one `inet` table, in the network namespace where this is made.

    Not for several threads at once. All raise `NetlinkError`.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.settimeout(_ANSWER_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def map_to_chains(self, chains: Mapping[str, str], key: bytes) -> None:
        """Has `key` lead (goto) to a chain, in several verdict maps at once: `chains` has a chain for each map."""
        self._commit([(_NEW_ELEMENTS, name, [_element(key, chain)]) for name, chain in chains.items()])

    def remove(self, keys: Mapping[str, Iterable[bytes]]) -> None:
        """Removes `keys`, by the name of their set or map, where it has them."""
        each = [(name, key) for name, some in keys.items() for key in some]
        for start in range(0, len(each), _AT_ONCE):
            self._remove(each[start : start + _AT_ONCE])

    def _remove(self, each: Sequence[tuple[str, bytes]]) -> None:
        try:
            together = groupby(each, key=itemgetter(0))
            self._commit([(_DELETE_ELEMENTS, name, [_element(key) for _, key in some]) for name, some in together])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            if len(each) > 1:  # the kernel removes all or none of them
                for one in each:
                    self._remove([one])

    def counters(self, name: str) -> dict[bytes, Count]:
        """Reads a set whose elements have counters: the count of each key."""
        found: dict[bytes, Count] = {}
        for payload in self._read(name):
            found.update(_counts(payload))
        return found

    def counters_of(self, keys: Sequence[tuple[str, bytes]]) -> dict[tuple[str, bytes], Count]:
        """Reads the counts of single elements, by set and key, in a few system calls; those that are not there lack."""
        found: dict[tuple[str, bytes], Count] = {}
        for start in range(0, len(keys), _ANSWERS_AT_ONCE):
            found.update(self._get(keys[start : start + _ANSWERS_AT_ONCE]))
        return found

    def _get(self, keys: Sequence[tuple[str, bytes]]) -> dict[tuple[str, bytes], Count]:
        first = self._sequence + 1
        self._sequence += len(keys)
        requests = bytearray()
        for number, (name, key) in enumerate(keys, first):
            requests += _message(_GET_ELEMENTS, NLM_F_REQUEST, number, self._body(name, [_element(key)]))
        self._socket.send(requests)
        found: dict[tuple[str, bytes], Count] = {}
        answered = 0
        while answered < len(keys):
            for kind, _, sequence, payload in self._messages():
                if sequence < first:
                    continue
                answered += 1
                if kind == NLMSG_ERROR:
                    self._fail(payload, "read elements of nftables' sets", besides=errno.ENOENT)
                else:
                    for each in _elements(payload):
                        found[keys[sequence - first]] = _count(each)
        return found

    def keys(self, name: str) -> set[bytes]:
        """Reads a set's or map's keys."""
        return {_key(element) for payload in self._read(name) for element in _elements(payload)}

    def _read(self, name: str) -> list[bytes]:
        """All messages of a set's elements; of an element that is in two of them, the later one counts."""
        found: list[bytes] = []
        for _ in range(_DUMPS):
            payloads, whole = self._dump(name)
            found += payloads
            if whole:
                return payloads
        return found  # somebody changes the set all the time; what was found is right, and some may be missing

    def _dump(self, name: str) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._socket.send(_message(_GET_ELEMENTS, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, self._body(name)))
        found: list[bytes] = []
        whole = True
        while True:
            for kind, flags, sequence, payload in self._messages():
                if sequence != self._sequence:
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return found, whole
                if kind == NLMSG_ERROR:
                    self._fail(payload, f"read the set {name}")
                found.append(payload)

    def _commit(self, changes: Sequence[tuple[int, str, Sequence[bytes]]]) -> None:
        """Carries out all of the changes or none: the message's kind, the set, the elements.

        The kernel answers what fails, and the last change whatever comes of it: answers to all of them could be more
        than the socket takes.
        """
        edge = _GENERAL.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
        first, last = self._sequence + 1, self._sequence + 1 + len(changes)
        self._sequence = last + 1
        batch = bytearray(_message(_BATCH_BEGIN, NLM_F_REQUEST, first, edge))
        for number, (kind, name, elements) in enumerate(changes, first + 1):
            flags = NLM_F_REQUEST | NLM_F_CREATE | (NLM_F_ACK if number == last else 0)
            batch += _message(kind, flags, number, self._body(name, elements))
        batch += _message(_BATCH_END, NLM_F_REQUEST, self._sequence, edge)
        self._socket.send(batch)
        answered = False
        while not answered:
            for kind, _, sequence, payload in self._messages():
                if kind == NLMSG_ERROR and sequence >= first:
                    self._fail(payload, "change elements of nftables' sets")
                    answered = sequence == last

    def _body(self, name: str, elements: Sequence[bytes] = ()) -> bytes:
        body = _GENERAL.pack(_INET, 0, 0) + attribute_text(_TABLE, self._table) + attribute_text(_SET, name)
        if elements:
            listed = b"".join(attribute(_LIST_ELEMENT | _NESTED, element) for element in elements)
            body += attribute(_ELEMENTS | _NESTED, listed)
        return body

    def _messages(self) -> list[tuple[int, int, int, bytes]]:
        data = self._socket.recv(_BUFFER_BYTES)
        found = []
        while len(data) >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
            found.append((kind, flags, sequence, data[_HEADER.size : length]))
            data = data[_aligned(length) :]
        return found

    @staticmethod
    def _fail(payload: bytes, what: str, besides: int = 0) -> None:
        (number,) = struct.unpack_from("=i", payload)
        if number not in (0, -besides):
            raise NetlinkError(-number, f"{what}: {os.strerror(-number)}")


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _element(key: bytes, chain: str = "") -> bytes:
    encoded = attribute(_KEY | _NESTED, attribute(_VALUE, key))
    if chain:
        verdict = attribute(_VERDICT_CODE, struct.pack("!i", _GOTO)) + attribute_text(_VERDICT_CHAIN, chain)
        encoded += attribute(_DATA | _NESTED, attribute(_VERDICT | _NESTED, verdict))
    return encoded


def _elements(payload: bytes) -> Iterator[bytes]:
    parts = dict(attributes(payload[_GENERAL.size :]))
    return (element for _, element in attributes(parts.get(_ELEMENTS, b"")))


def _key(element: bytes) -> bytes:
    encoded = next(value for kind, value in attributes(element) if kind == _KEY)
    return next(value for kind, value in attributes(encoded) if kind == _VALUE)


def _counts(payload: bytes) -> dict[bytes, Count]:
    """The keys and counts of a message.

    The elements of a set that came about in one way differ in these alone, so that a look at the first says where they
    are in all of them: the jobs of a whole node have thousands.
    """
    listed = dict(attributes(payload[_GENERAL.size :])).get(_ELEMENTS, b"")
    try:
        places = [_place(listed, _LIST_ELEMENT, *kinds) for kinds in _COUNTED]
    except LookupError:
        return {_key(element): _count(element) for element in _elements(payload)}
    size, parts, at = _aligned(struct.unpack_from("=H", listed)[0]), "=", 0
    for start, end in places:
        parts += f"{start - at}s{end - start}s"
        at = end
    if len(listed) % size == 0:
        rows = list(struct.iter_unpack(f"{parts}{size - at}s", listed))
        if len({row[::2] for row in rows}) == 1:
            number = int.from_bytes
            return {row[1]: Count(number(row[3], "big"), number(row[5], "big")) for row in rows}
    return {_key(element): _count(element) for element in _elements(payload)}


def _place(data: bytes, *kinds: int) -> tuple[int, int]:
    """Where the value begins and ends of the first attribute of the last of `kinds`, within those of the others.

    Raises LookupError.
    """
    at, end = 0, len(data)
    for kind in kinds:
        while True:
            if end - at < _ATTRIBUTE.size:
                raise LookupError(kind)
            length, found = _ATTRIBUTE.unpack_from(data, at)
            if found & ~_NESTED == kind:
                break
            at += _aligned(length)
        at, end = at + _ATTRIBUTE.size, at + length
    return at, end


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _count(element: bytes) -> Count:
    expression = dict(attributes(dict(attributes(element)).get(_EXPRESSION, b"")))
    found = dict(attributes(expression.get(_EXPRESSION_DATA, b"")))
    if _COUNTER_BYTES not in found:
        return Count(0, 0)
    return Count(*(_U64.unpack(found[which])[0] for which in (_COUNTER_BYTES, _COUNTER_PACKETS)))
