"""Traffic control (tc(8)): the requests that make queues, classes and filters, to be sent in one batch by `Netlink.do`.

Only what every kernel since Linux 4.18 (RHEL 8) has is used, but for the better of the two kinds of queue. Sources:
linux/pkt_sched.h, linux/pkt_cls.h, net/sched/sch_htb.c, cls_u32.c, act_mirred.c.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from htcondor_vpn.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_ECHO,
    NLM_F_EXCL,
    Netlink,
    Request,
    attribute,
    attribute_text,
    attribute_u32,
    attributes,
)
from htcondor_vpn.linux.shaping import Limit

RTM_NEWQDISC, RTM_GETQDISC = 36, 38
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
RTM_NEWTFILTER, RTM_DELTFILTER = 44, 45

#: How packets wait in a class: in one queue, or in one for each flow, so that one that fills its own delays no other.
BFIFO, FQ_CODEL = "bfifo", "fq_codel"

_ROOT, _CLSACT, _CLSACT_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_RECEIVED, _SENT = 0xFFFFFFF2, 0xFFFFFFF3  # where the filters of a clsact hang
_HTB = 1 << 16  # the handle of the tree, whose classes are _HTB | minor
_TCA_KIND, _TCA_OPTIONS, _TCA_STATS2 = 1, 2, 7
_STATS_BASIC, _STATS_PACKETS64 = 1, 8
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_FQ_CODEL_TARGET, _FQ_CODEL_INTERVAL, _FQ_CODEL_FLOWS, _FQ_CODEL_MEMORY_LIMIT = 1, 3, 5, 9
_LINKLAYER_ETHERNET = 1
_U32_CLASSID, _U32_HASH, _U32_LINK, _U32_DIVISOR, _U32_SEL, _U32_ACT, _U32_INDEV = 1, 2, 3, 4, 5, 7, 8
_U32_TERMINAL = 1
_TABLE = 1 << 20  # the handle of the hash table of filters; an entry's is _TABLE | bucket << 12 | its number there
_BUCKETS = 256
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_STOLEN, _EGRESS_REDIRECT = 4, 1
_FIRST, _ETH_P_ALL = 1 << 16, 3
_TICK_NANOSECONDS = 64  # PSCHED_SHIFT = 6

#: The last two bytes of the sender's hardware address and the protocol, seen from where a packet's IP header begins.
_ADDRESS_OFFSET = -4


class Class(NamedTuple):
    """A class of a tree, and what has left it: frames, Ethernet headers included, as they are on a wire."""

    minor: int
    parent: int
    sent_bytes: int
    sent_packets: int


def make_tree(index: int, unclassified: int) -> list[Request]:
    """Makes what link `index` sends wait in a tree of classes (HTB): of numbers as `add_entry` leads them.

    The rest waits in class `unclassified`.
    """
    start = attribute(_HTB_INIT, struct.pack("=IIIII", 3, 10, unclassified, 0, 0))
    what = f"make the tree of link {index}"
    table = attribute_u32(_U32_DIVISOR, _BUCKETS)
    to_table = attribute_u32(_U32_LINK, _TABLE)
    to_table += attribute(_U32_SEL, _match(0, bytes(4), bytes(4), flags=0, hash_mask=b"\0\xff\0\0"))
    return [
        _traffic(RTM_NEWQDISC, index, _HTB, _ROOT, "htb", start, what),
        _traffic(RTM_NEWTFILTER, index, _TABLE, _HTB, "u32", table, what, _everything()),
        _traffic(RTM_NEWTFILTER, index, 0, _HTB, "u32", to_table, what, _everything()),
    ]


def add_class(index: int, minor: int, limit: Limit, parent: int = 0) -> Request:
    """Adds a class below class `parent`, or below the tree itself (0)."""
    what = f"add class {minor:x} to the tree of link {index}"
    return _traffic(RTM_NEWTCLASS, index, _HTB | minor, _HTB | parent, "htb", _htb(limit), what)


def change_class(index: int, minor: int, limit: Limit, parent: int = 0) -> Request:
    """Gives a class another limit."""
    what = f"change class {minor:x} of the tree of link {index}"
    return _traffic(RTM_NEWTCLASS, index, _HTB | minor, _HTB | parent, "htb", _htb(limit), what, flags=0)


def remove_class(index: int, minor: int) -> Request:
    """Removes a class, and what waits in it; it may have no entry and no classes below it."""
    what = f"remove class {minor:x} from the tree of link {index}"
    return Request(RTM_DELTCLASS, 0, _header(index, _HTB | minor, _HTB), what)


def set_queue(index: int, minor: int, kind: str, limit: Limit) -> Request:
    """Gives a class at the bottom of the tree its queue; the kernel answers ENOENT for a kind that it lacks."""
    if kind == FQ_CODEL:
        options = attribute_u32(_FQ_CODEL_TARGET, limit.queueing_microseconds)
        options += attribute_u32(_FQ_CODEL_INTERVAL, 20 * limit.queueing_microseconds)
        options += attribute_u32(_FQ_CODEL_FLOWS, 128) + attribute_u32(_FQ_CODEL_MEMORY_LIMIT, limit.queue_bytes)
    else:
        options = struct.pack("=I", limit.queue_bytes)
    what = f"give class {minor:x} of link {index} a queue ({kind})"
    return _traffic(RTM_NEWQDISC, index, minor << 16, _HTB | minor, kind, options, what)


def add_entry(index: int, number: int, minor: int, came_by: str) -> Request:
    """Leads the packets of number `number` to class `minor`: by the last two bytes of their sender's hardware address.

    They must have come by the link of that name, too, so that a forged address leads nowhere.
    """
    key = _match(_ADDRESS_OFFSET, b"\xff\xff\0\0", struct.pack(">Hxx", number), flags=_U32_TERMINAL)
    options = attribute_u32(_U32_CLASSID, _HTB | minor) + attribute_u32(_U32_HASH, _entry(number) & ~0xFFF)
    options += attribute(_U32_SEL, key) + attribute_text(_U32_INDEV, came_by)
    what = f"lead number {number} to class {minor:x} of link {index}"
    return _traffic(RTM_NEWTFILTER, index, _entry(number), _HTB, "u32", options, what, _everything())


def remove_entry(index: int, number: int) -> Request:
    """Removes the entry of a number."""
    what = f"remove number {number} from the tree of link {index}"
    body = _header(index, _entry(number), _HTB, _everything()) + attribute_text(_TCA_KIND, "u32")
    return Request(RTM_DELTFILTER, 0, body, what)


def redirect(index: int, *, received_to: int | None, sent_to: int | None) -> list[Request]:
    """Has what link `index` receives and sends pass through other links (ifb) first, and come back."""
    what = f"redirect what passes link {index}"
    requests = [_traffic(RTM_NEWQDISC, index, _CLSACT_HANDLE, _CLSACT, "clsact", b"", what)]
    for parent, to_index in ((_RECEIVED, received_to), (_SENT, sent_to)):
        if to_index is not None:
            mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, to_index)
            action = attribute_text(_ACT_KIND, "mirred") + attribute(_ACT_OPTIONS, attribute(_MIRRED_PARMS, mirred))
            options = attribute(_U32_SEL, _match(0, bytes(4), bytes(4), flags=_U32_TERMINAL))
            options += attribute(_U32_ACT, attribute(1, action))
            requests.append(_traffic(RTM_NEWTFILTER, index, 0, parent, "u32", options, what, _everything()))
    return requests


def queue_kind(netlink: Netlink, index: int, minor: int) -> str:
    """Returns which kind of queue a class was given, "" if none."""
    for body in netlink.dump(RTM_GETQDISC, _header(index, 0, 0)):
        found, handle = struct.unpack_from("=iI", body, 4)
        if (found, handle) == (index, minor << 16):
            return dict(attributes(body[20:]))[_TCA_KIND].rstrip(b"\0").decode()
    return ""


def list_classes(netlink: Netlink, index: int) -> list[Class]:
    """Lists the classes of a link's tree; there are none where there is no such link."""
    return [_parse(body) for body in netlink.dump(RTM_GETTCLASS, _header(index, 0, 0))]


def get_class(netlink: Netlink, index: int, minor: int) -> Class:
    """Returns one class; raises `NetlinkError`: ENODEV without the link, ENOENT without the class."""
    body = _header(index, _HTB | minor, _HTB)
    # Up to Linux 5.19 the one who asks is only told when he wants the echo of what all others are told.
    return _parse(netlink.get(RTM_GETTCLASS, body, f"read class {minor:x} of link {index}", NLM_F_ECHO))


def _parse(body: bytes) -> Class:
    handle, parent = struct.unpack_from("=II", body, 8)
    counts = dict(attributes(dict(attributes(body[20:]))[_TCA_STATS2]))
    sent_bytes, packets = struct.unpack_from("=QI", counts[_STATS_BASIC])
    if _STATS_PACKETS64 in counts:
        (packets,) = struct.unpack("=Q", counts[_STATS_PACKETS64])
    return Class(handle & 0xFFFF, 0 if parent == _ROOT else parent & 0xFFFF, sent_bytes, packets)


def _htb(limit: Limit) -> bytes:
    rate, ceiling = limit.rate_bps // 8, limit.ceiling_bps // 8
    parts = b""
    for bytes_per_second in (rate, ceiling):
        parts += struct.pack("=BBHhHI", 0, _LINKLAYER_ETHERNET, 0, -1, 0, min(bytes_per_second, 0xFFFFFFFF))
    ticks = (_ticks(limit.burst_bytes, rate), _ticks(limit.ceiling_burst_bytes, ceiling))
    parameters = attribute(_HTB_PARMS, parts + struct.pack("=IIIII", *ticks, limit.turn_bytes, 0, 0))
    for kind, bytes_per_second in ((_HTB_RATE64, rate), (_HTB_CEIL64, ceiling)):
        if bytes_per_second > 0xFFFFFFFF:
            parameters += attribute(kind, struct.pack("=Q", bytes_per_second))
    return parameters


def _ticks(burst_bytes: int, bytes_per_second: int) -> int:
    return min(burst_bytes * 1_000_000_000 // bytes_per_second // _TICK_NANOSECONDS, 0xFFFFFFFF)


def _entry(number: int) -> int:
    return _TABLE | (number % _BUCKETS) << 12 | (number // _BUCKETS + 1)


def _match(offset: int, mask: bytes, value: bytes, *, flags: int, hash_mask: bytes = bytes(4)) -> bytes:
    """A struct tc_u32_sel with one key of four bytes, and which four bytes choose the bucket of a table."""
    header = struct.pack("=BBBxHHhh4s", flags, 0, 1, 0, 0, 0, _ADDRESS_OFFSET if any(hash_mask) else 0, hash_mask)
    return header + struct.pack("=4s4sii", mask, value, offset, 0)


def _everything() -> int:
    """Priority 1, every protocol."""
    return _FIRST | socket.htons(_ETH_P_ALL)


def _header(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, index, handle, parent, info)


def _traffic(
    request: int,
    index: int,
    handle: int,
    parent: int,
    kind: str,
    options: bytes,
    what: str,
    info: int = 0,
    flags: int = NLM_F_CREATE | NLM_F_EXCL,
) -> Request:
    body = _header(index, handle, parent, info) + attribute_text(_TCA_KIND, kind) + attribute(_TCA_OPTIONS, options)
    return Request(request, flags, body, what)
