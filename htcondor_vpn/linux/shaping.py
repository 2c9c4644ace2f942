"""Rate limits on links: HTB with a bounded queue, and for what a link receives the detour through an ifb.

Only what every kernel since RHEL 8 has is used (htb, bfifo, ingress, u32, mirred). Sources: tc-htb(8),
linux/pkt_sched.h, net/sched/sch_htb.c.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from htcondor_vpn.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Request,
    attribute,
    attribute_text,
    attribute_u32,
)

RTM_NEWQDISC, RTM_NEWTCLASS, RTM_NEWTFILTER = 36, 40, 44

#: The rates that the arithmetic below is right for.
LOWEST_BPS = 8_000
HIGHEST_BPS = 10**12

_ROOT, _INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
_HTB, _HTB_CLASS, _QUEUE, _INGRESS_HANDLE = 0x00010000, 0x00010010, 0x00100000, 0xFFFF0000
_TCA_KIND, _TCA_OPTIONS = 1, 2
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_LINKLAYER_ETHERNET = 1
_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_U32_TERMINAL = 1
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_STOLEN, _EGRESS_REDIRECT = 4, 1
_ETH_P_ALL = 3
_TICK_NANOSECONDS = 64  # PSCHED_SHIFT = 6


class Limit(NamedTuple):
    """A rate with the burst and the queue that fit it. Make it by `limit_for`."""

    rate_bps: int
    burst_bytes: int
    queue_bytes: int


def limit_for(rate_bps: float) -> Limit:
    """Chooses burst and queue for a rate; raises ValueError outside `LOWEST_BPS` … `HIGHEST_BPS`.

    HTB sends a whole 64 KB segment as soon as it owes nothing and waits afterwards, so the burst only has to cover the
    timer's lateness (1 ms). The queue holds 100 ms, and never less than four such segments.
    """
    if not LOWEST_BPS <= rate_bps <= HIGHEST_BPS:
        raise ValueError(f"a rate of {rate_bps:g} bit/s is not between {LOWEST_BPS:g} and {HIGHEST_BPS:g}")
    bytes_per_second = rate_bps / 8
    return Limit(
        rate_bps=int(rate_bps),
        burst_bytes=int(max(3_000, bytes_per_second / 1_000)),
        queue_bytes=int(max(4 * 65_536, min(bytes_per_second / 10, 64 << 20))),
    )


def limit_sending(index: int, limit: Limit) -> list[Request]:
    """Limits what link `index` sends."""
    rate = limit.rate_bps // 8
    spec = struct.pack("=BBHhHI", 0, _LINKLAYER_ETHERNET, 0, -1, 0, min(rate, 0xFFFFFFFF))
    ticks = min(limit.burst_bytes * 1_000_000_000 // rate // _TICK_NANOSECONDS, 0xFFFFFFFF)
    quantum = max(1_514, min(rate // 10, 200_000))
    parameters = attribute(_HTB_PARMS, spec + spec + struct.pack("=IIIII", ticks, ticks, quantum, 0, 0))
    if rate > 0xFFFFFFFF:
        parameters += attribute(_HTB_RATE64, struct.pack("=Q", rate)) + attribute(_HTB_CEIL64, struct.pack("=Q", rate))
    start = attribute(_HTB_INIT, struct.pack("=IIIII", 3, 10, _HTB_CLASS & 0xFFFF, 0, 0))
    what = f"limit what link {index} sends to {limit.rate_bps} bit/s"
    return [
        _traffic(RTM_NEWQDISC, index, _HTB, _ROOT, "htb", start, what),
        _traffic(RTM_NEWTCLASS, index, _HTB_CLASS, _HTB, "htb", parameters, what),
        _traffic(RTM_NEWQDISC, index, _QUEUE, _HTB_CLASS, "bfifo", struct.pack("=I", limit.queue_bytes), what),
    ]


def redirect_received(index: int, to_index: int) -> list[Request]:
    """Sends everything that link `index` receives through link `to_index` (an ifb) first."""
    what = f"redirect what link {index} receives to link {to_index}"
    mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, to_index)
    action = attribute_text(_ACT_KIND, "mirred") + attribute(_ACT_OPTIONS, attribute(_MIRRED_PARMS, mirred))
    match_all = struct.pack("=BBBxHHhhI", _U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    options = (
        attribute_u32(_U32_CLASSID, _HTB) + attribute(_U32_SEL, match_all) + attribute(_U32_ACT, attribute(1, action))
    )
    info = 1 << 16 | socket.htons(_ETH_P_ALL)  # priority 1, every protocol
    return [
        _traffic(RTM_NEWQDISC, index, _INGRESS_HANDLE, _INGRESS, "ingress", b"", what),
        _traffic(RTM_NEWTFILTER, index, 0, _INGRESS_HANDLE, "u32", options, what, info),
    ]


def _traffic(
    request: int, index: int, handle: int, parent: int, kind: str, options: bytes, what: str, info: int = 0
) -> Request:
    header = struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, index, handle, parent, info)
    body = header + attribute_text(_TCA_KIND, kind) + attribute(_TCA_OPTIONS, options)
    return Request(request, NLM_F_CREATE | NLM_F_EXCL, body, what)
