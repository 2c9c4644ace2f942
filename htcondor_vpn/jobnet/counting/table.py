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
from typing import NamedTuple

from htcondor_vpn.addresses import FIRST_INDEX
from htcondor_vpn.errors import JobCountingUnavailable
from htcondor_vpn.jobnet.counting.rules import FIRST_CLASS_MARK, TABLE, remove_rules, table_rules
from htcondor_vpn.linux.namespaces import capabilities_to_programs
from htcondor_vpn.linux.netlink import NetlinkError
from htcondor_vpn.linux.nftables import Count, Elements
from htcondor_vpn.linux.programs import ProgramFailed, run_program
from htcondor_vpn.special_addresses import Address

#: Ethernet's header, which links count and rules do not.
FRAME_BYTES = 14

_MAPS = ("sent_by", "received_by")
_SETS = ("sent_bytes", "received_bytes", "connections") + tuple(
    f"{way}_flows_{version}" for way in ("sent", "received") for version in (4, 6)
)
_PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
_LINK = _MARK = struct.Struct("=I")

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

        Only in a `nft_thread`.
        """
        if self._exists():
            return True
        try:
            self.run(table_rules(logging=True))
        except JobCountingUnavailable as error:
            log.warning("this kernel shows no packets (nft_log), so flight recorders have no names: %s", error.cause)
            self.run(table_rules(logging=False))
        return False

    def _exists(self) -> bool:
        try:
            self._elements.keys(_MAPS[0])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def remove(self) -> None:
        """Takes it out of the kernel; one that is not there is no error. Raises `JobCountingUnavailable`."""
        self.run(f"table inet {TABLE}\ndelete table inet {TABLE}\n")

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

    def moved(self) -> dict[int, dict[int, Moved]]:
        """What each job network has moved, by the number of the class; 0 is what is in none.

        Of a job without classes there are connections only.
        """
        sent, received, begun = (self._elements.counters(name) for name in _SETS[:3])
        found: dict[int, dict[int, Moved]] = {}
        for key in sent.keys() | received.keys() | begun.keys():
            counts = _moved(sent.get(key), received.get(key), begun.get(key))
            found.setdefault(_number(key), {})[_class(_MARK.unpack(key[-4:])[0])] = counts
        return found

    def moved_by(self, number: int, classes: int) -> dict[int, Moved]:
        """What one job network has moved, in no class and in each of so many; it takes no longer with more jobs."""
        marks = [_link(number) + _MARK.pack(_mark(each)) for each in range(classes + 1)]
        counts = self._elements.counters_of([(name, key) for key in marks for name in _SETS[:3]])
        return {each: _moved(*(counts.get((name, key)) for name in _SETS[:3])) for each, key in enumerate(marks)}

    def flows(self, numbers: Collection[int] | None = None) -> dict[int, dict[Flow, Moved]]:
        """With whom each job network, or each of `numbers`, has exchanged what since the flow was last forgotten."""
        found: dict[int, dict[Flow, Moved]] = {}
        for version in (4, 6):
            sent, received = (self._elements.counters(f"{way}_flows_{version}") for way in ("sent", "received"))
            for key in sent.keys() | received.keys():
                if numbers is None or _number(key) in numbers:
                    counts = _moved(sent.get(key), received.get(key))
                    found.setdefault(_number(key), {})[_flow(key, version)] = counts
        return found

    def forget_flows(self, number: int, flows: Mapping[Flow, Moved]) -> None:
        """Makes room for others: removes `flows`, as they were read."""
        keys: dict[str, list[bytes]] = {}
        for flow, moved in flows.items():
            for way, packets in (("sent", moved.sent_packets), ("received", moved.received_packets)):
                if packets:  # the kernel takes long to say that it has no such element
                    keys.setdefault(f"{way}_flows_{flow.peer.address.version}", []).append(_key(number, flow))
        self._elements.remove(keys)

    def forget(self, numbers: Collection[int]) -> None:
        """Removes these job networks from the maps, and their counts; their links are gone, or can send no more."""
        self._elements.remove(
            {name: [key for key in self._elements.keys(name) if _number(key) in numbers] for name in (*_MAPS, *_SETS)}
        )

    def known(self) -> set[int]:
        """The job networks that are in any map or set."""
        return {_number(key) for name in (*_MAPS, *_SETS) for key in self._elements.keys(name)}


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


def _key(number: int, flow: Flow) -> bytes:
    peer, mark = flow.peer, flow.refused_by or _mark(flow.number)
    protocol = socket.IPPROTO_TCP if peer.protocol == "tcp" else socket.IPPROTO_UDP
    ends = struct.pack("=B3x", protocol) + struct.pack("!H2x", peer.port)
    return _link(number) + peer.address.packed + ends + _MARK.pack(mark)


def _flow(key: bytes, version: int) -> Flow:
    end = 8 if version == 4 else 20
    (port,) = struct.unpack_from("!H", key, end + 4)
    (mark,) = _MARK.unpack(key[-4:])
    peer = Peer(ip_address(key[4:end]), _PROTOCOLS[key[end]], port)
    return Flow(peer, _class(mark), mark if mark < FIRST_CLASS_MARK else 0)


def _moved(sent: Count | None, received: Count | None, begun: Count | None = None) -> Moved:
    sent, received = sent or Count(0, 0), received or Count(0, 0)
    return Moved(
        sent.bytes + FRAME_BYTES * sent.packets,
        received.bytes + FRAME_BYTES * received.packets,
        sent.packets,
        received.packets,
        begun.packets if begun is not None else 0,
    )
