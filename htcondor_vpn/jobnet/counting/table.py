"""The broker's hold on the kernel's table: which job may reach what, and what each has moved.

The kernel keeps the table while a broker is replaced, so that the next one finds every count.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from itertools import product
from typing import NamedTuple

from htcondor_vpn.addresses import FIRST_INDEX
from htcondor_vpn.errors import JobCountingUnavailable
from htcondor_vpn.jobnet.counting.rules import (
    BUDGETS,
    FIRST_CLASS_MARK,
    LAYOUT,
    TABLE,
    counts_look_ups,
    remove_rules,
    table_rules,
)
from htcondor_vpn.linux.namespaces import capabilities_to_programs
from htcondor_vpn.linux.netlink import NetlinkError
from htcondor_vpn.linux.nftables import Count, Elements
from htcondor_vpn.linux.programs import ProgramFailed, run_program
from htcondor_vpn.special_addresses import Address

#: Ethernet's header, which links count and rules do not.
FRAME_BYTES = 14

_MAPS = ("sent_by", "received_by")
_BY_CLASS = ("sent_bytes", "received_bytes", "connections")
_FLOWS = tuple(f"{what}_{version}" for what in ("sent_flows", "received_flows", "refused_flows", "flow_classes")
               for version in (4, 6))  # fmt: skip
_UNLISTED = ("sent_unlisted", "received_unlisted")
_ALL = (*_MAPS, *_BY_CLASS, *_FLOWS, *_UNLISTED, *BUDGETS)
_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_LINK = _MARK = struct.Struct("=I")
_NO_MARK = _MARK.pack(0)
_REMOVAL = f"table inet {TABLE}\ndelete table inet {TABLE}\n"

log = logging.getLogger(__name__)


class Moved(NamedTuple):
    """What went both ways, in bytes as on the job's link (Ethernet's header included) and packets."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    received_packets: int = 0
    connections: int = 0

    def plus(self, other: Moved) -> Moved:
        return Moved(*(mine + theirs for mine, theirs in zip(self, other)))

    def less(self, other: Moved) -> Moved:
        return Moved(*(max(mine - theirs, 0) for mine, theirs in zip(self, other)))


class Peer(NamedTuple):
    """Whom a job talked to; `protocol` is "tcp" or "udp"."""

    address: Address
    protocol: str
    port: int


class Flow(NamedTuple):
    """With whom, and the number of its class; or `refused_by`: a mark that says by what (`REFUSAL_MARKS`)."""

    peer: Peer
    number: int
    refused_by: int = 0


def nft_thread() -> ThreadPoolExecutor:
    """A thread whose programs have this process' capabilities over its network namespace.

    They are the thread's own, so that nothing has to be done between fork and exec, where another thread's lock might
    be held for ever.
    """
    return ThreadPoolExecutor(1, "nft", initializer=capabilities_to_programs)


class JobTable:
    """The table in this network namespace. Its methods raise `NetlinkError`, or `JobCountingUnavailable`."""

    def __init__(self, nft: str) -> None:
        self._nft = nft
        self._elements = Elements(TABLE)

    def close(self) -> None:
        self._elements.close()

    def open(self) -> bool:
        """Makes the table, or returns True if another broker has made it; raises `JobCountingUnavailable`.

        One that another version of this has made is replaced, and what it has counted is lost. Only in a `nft_thread`.
        """
        if self._exists():
            return True
        refused: JobCountingUnavailable | None = None
        for (shown, bounded), known_flows in product(((True, True), (False, True), (False, False)), (True, False)):
            refused = self._make(logging=shown, known_flows=known_flows, bounded=bounded)
            if refused is None and (not known_flows or self._counts_look_ups()):
                if not known_flows:
                    log.info("every packet meets the rules of its job: this kernel does not count as it looks up")
                if not shown:
                    log.warning("this kernel shows no packets (nft_log), so flight recorders have no names")
                if not bounded:
                    log.warning("one job can keep the others' flows from their recorders: this kernel has no nft_limit")
                return False
        assert refused is not None
        raise refused

    def _exists(self) -> bool:
        try:
            self._elements.keys(LAYOUT)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def _make(self, *, logging: bool, known_flows: bool, bounded: bool) -> JobCountingUnavailable | None:
        """Makes the table, in place of one that is there; returns why it cannot be made."""
        try:
            self.run(_REMOVAL + table_rules(logging=logging, known_flows=known_flows, bounded=bounded))
        except JobCountingUnavailable as error:
            return error
        return None

    def _counts_look_ups(self) -> bool:
        try:
            return counts_look_ups(run_program([self._nft, "list", "set", "inet", TABLE, "sent_flows_4"]))
        except ProgramFailed as error:
            log.warning("the jobs' rules cannot be listed: %s", error.stderr.strip())
            return False

    def remove(self) -> None:
        """Takes it out of the kernel; one that is not there is no error. Raises `JobCountingUnavailable`."""
        self.run(_REMOVAL)

    def run(self, rules: str) -> None:
        """Gives rules to nft, all or none of which come into force; some milliseconds. Only in a `nft_thread`."""
        try:
            run_program([self._nft, "-f", "-"], stdin=rules)
        except ProgramFailed as error:
            said = error.stderr.strip().partition("\n")[0] or f"exit code {error.code}"
            raise JobCountingUnavailable(
                f"jobs cannot be counted, nor kept to their destinations: {self._nft}: {said}",
                "have an administrator run: modprobe nft_counter nft_reject_inet",
            ) from error

    def lead(self, number: int, policy: str) -> None:
        """Puts the link of job network `number` under the chains of `policy`."""
        chains = dict(zip(_MAPS, (f"{policy}_sent", f"{policy}_received")))
        self._elements.map_to_chains(chains, _link(number))

    def remove_policies(self, names: Collection[str]) -> None:
        """Removes the chains of policies without jobs."""
        self.run(remove_rules(names))

    def moved(self, flows: Mapping[int, Mapping[Flow, Moved]]) -> dict[int, dict[int, Moved]]:
        """What each job network has moved, by the number of the class; 0 is what is in none.

        `flows` are all that were just read. What has been forgotten of them is missing.
        """
        sent, received, begun = (self._elements.counters(name) for name in _BY_CLASS)
        found: dict[int, dict[int, Moved]] = {}
        for key in sent.keys() | received.keys() | begun.keys():
            counts = _moved(sent.get(key), received.get(key), begun.get(key))
            found.setdefault(_number(key), {})[_class(_MARK.unpack(key[-4:])[0])] = counts
        for number, some in flows.items():
            _add(found.setdefault(number, {}), some)
        return found

    def moved_by(self, number: int, classes: int) -> dict[int, Moved]:
        """What one job network has moved, in no class and in each of so many.

        Of a job without classes there are connections alone, which takes no longer with more jobs: the link itself has
        the rest.
        """
        marks = [_link(number) + _MARK.pack(_mark(each)) for each in range(classes + 1)]
        counts = self._elements.counters_of([(name, key) for key in marks for name in _BY_CLASS])
        found = {each: _moved(*(counts.get((name, key)) for name in _BY_CLASS)) for each, key in enumerate(marks)}
        if classes:
            _add(found, self.flows({number}).get(number, {}))
        return found

    def flows(self, numbers: Collection[int] | None = None) -> dict[int, dict[Flow, Moved]]:
        """With whom each job network, or each of `numbers`, has exchanged what since the flow was last forgotten."""
        links = None if numbers is None else set(map(_link, numbers))
        found: dict[int, dict[Flow, Moved]] = {}
        for version in (4, 6):
            sent, received, refused = (
                self._elements.counters(f"{what}_flows_{version}") for what in ("sent", "received", "refused")
            )
            classes = {key[:-4]: key[-4:] for key in self._elements.keys(f"flow_classes_{version}")}
            for key in sent.keys() | received.keys():
                if links is None or key[:4] in links:
                    flow = Flow(_peer(key, version), _class(*_MARK.unpack(classes.get(key, _NO_MARK))))
                    found.setdefault(_number(key), {})[flow] = _moved(sent.get(key), received.get(key))
            for key, count in refused.items():
                if links is None or key[:4] in links:
                    flow = Flow(_peer(key, version), 0, *_MARK.unpack(key[-4:]))
                    found.setdefault(_number(key), {})[flow] = _moved(count, None)
        return found

    def unlisted(self) -> dict[int, Moved]:
        """What each job network has moved in flows that were too many to be told apart, if any were."""
        sent, received = (self._elements.counters(name) for name in _UNLISTED)
        return {_number(key): _moved(sent.get(key), received.get(key)) for key in sent.keys() | received.keys()}

    def forget_flows(self, number: int, flows: Mapping[Flow, Moved]) -> None:
        """Removes `flows`, as they were read: to make room for others, or to have them meet changed rules."""
        keys: dict[str, list[bytes]] = {}
        for flow, moved in flows.items():
            # The kernel takes long to say that it has no such element.
            names = {
                "refused_flows": flow.refused_by,
                "sent_flows": moved.sent_packets and not flow.refused_by,
                "received_flows": moved.received_packets,
                "flow_classes": flow.number,
            }
            for name in (name for name, there in names.items() if there):
                mark = {"refused_flows": flow.refused_by, "flow_classes": _mark(flow.number)}.get(name)
                key = _key(number, flow.peer) + (b"" if mark is None else _MARK.pack(mark))
                keys.setdefault(f"{name}_{flow.peer.address.version}", []).append(key)
        self._elements.remove(keys)

    def forget(self, numbers: Collection[int]) -> None:
        """Removes these job networks from the maps, and their counts; their links are gone, or can send no more."""
        self._elements.remove(
            {name: [key for key in self._elements.keys(name) if _number(key) in numbers] for name in _ALL}
        )

    def known(self) -> set[int]:
        """The job networks that are in any map or set."""
        return {_number(key) for name in _ALL for key in self._elements.keys(name)}


def _link(number: int) -> bytes:
    return _LINK.pack(FIRST_INDEX + 2 * number)


def _number(key: bytes) -> int:
    return int((_LINK.unpack_from(key)[0] - FIRST_INDEX) // 2)


def _mark(number: int) -> int:
    """The mark of a class by its number."""
    return FIRST_CLASS_MARK + number if number else 0


def _class(mark: int) -> int:
    """The number of the class whose mark it is."""
    return max(mark - FIRST_CLASS_MARK, 0)


def _key(number: int, peer: Peer) -> bytes:
    protocol = socket.IPPROTO_TCP if peer.protocol == "tcp" else socket.IPPROTO_UDP
    return _link(number) + peer.address.packed + struct.pack("=B3x", protocol) + struct.pack("!H2x", peer.port)


def _peer(key: bytes, version: int) -> Peer:
    end = 8 if version == 4 else 20
    (port,) = struct.unpack_from("!H", key, end + 4)
    return Peer(ip_address(key[4:end]), _PROTOCOLS[key[end]], port)


def _add(found: dict[int, Moved], flows: Mapping[Flow, Moved]) -> None:
    """Adds to the classes what was let go of the flows."""
    for flow, moved in flows.items():
        if not flow.refused_by:
            found[flow.number] = found.get(flow.number, Moved()).plus(moved)


def _moved(sent: Count | None, received: Count | None, begun: Count | None = None) -> Moved:
    sent, received = sent or Count(0, 0), received or Count(0, 0)
    return Moved(
        sent.bytes + FRAME_BYTES * sent.packets,
        received.bytes + FRAME_BYTES * received.packets,
        sent.packets,
        received.packets,
        begun.packets if begun is not None else 0,
    )
