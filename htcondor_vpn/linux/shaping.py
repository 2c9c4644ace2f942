"""What a rate of a class (HTB) takes besides: bursts, queue, turns, and segments that are not too large for it.

Sources: tc-htb(8), net/sched/sch_htb.c.
"""

from __future__ import annotations

from typing import NamedTuple

#: The rates that the arithmetic below is right for.
LOWEST_BPS = 8_000
HIGHEST_BPS = 10**12

#: What the kernel sends at once at most, before it is cut into frames (GSO).
LARGEST_SEGMENT_BYTES = 65_536


class Limit(NamedTuple):
    """The rate that a class has in any case, the one up to which it may borrow, and what fits them.

    Make it by `limit_for`. `turn_bytes` is what a class borrows before it is another's turn.
    """

    rate_bps: int
    ceiling_bps: int
    burst_bytes: int
    ceiling_burst_bytes: int
    turn_bytes: int
    queue_bytes: int
    queueing_microseconds: int


def limit_for(rate_bps: float, ceiling_bps: float | None = None) -> Limit:
    """Chooses what fits a rate, with which a class may borrow up to `ceiling_bps` (default: nothing).

    Raises ValueError for a rate outside of `LOWEST_BPS` … `HIGHEST_BPS` and a ceiling below the rate.

    HTB sends a whole segment as soon as it owes nothing and waits afterwards, so a burst only has to cover the timer's
    lateness. The queue holds 100 ms, and never less than four of the largest segments.
    """
    ceiling = rate_bps if ceiling_bps is None else ceiling_bps
    if not LOWEST_BPS <= rate_bps <= ceiling <= HIGHEST_BPS:
        between = f"between {LOWEST_BPS:g} and {HIGHEST_BPS:g}, the first no more than the second"
        raise ValueError(f"rates of {rate_bps:g} bit/s and at most {ceiling:g} bit/s are not {between}")
    return Limit(
        rate_bps=int(rate_bps),
        ceiling_bps=int(ceiling),
        burst_bytes=_burst_bytes(rate_bps),
        ceiling_burst_bytes=_burst_bytes(ceiling),
        turn_bytes=int(min(max(1_514, rate_bps / 8 * _TURN_SECONDS), 1 << 28)),
        queue_bytes=int(max(4 * LARGEST_SEGMENT_BYTES, min(ceiling / 8 / 10, 64 << 20))),
        queueing_microseconds=int(max(5_000, 1.5 * segment_bytes(ceiling) * 8e6 / ceiling)),
    )


def segment_bytes(rate_bps: float, largest_bytes: int = LARGEST_SEGMENT_BYTES) -> int:
    """How much a link may send at once so as to share a rate well: 2 ms, but two of its frames in any case.

    (With the 64 KB that the kernel sends otherwise, 10 Mbit/s go to one sender for 52 ms at a time.) Where the kernel
    has larger ones, `largest_bytes`, rates beyond 2.6 Gbit/s get 0.2 ms, lest they be bound by what a packet costs.
    """
    short = min(max(rate_bps / 8 * 0.002, _SMALLEST_SEGMENT_BYTES), LARGEST_SEGMENT_BYTES)
    return int(max(short, min(rate_bps / 8 * 0.0002, largest_bytes)))


def _burst_bytes(rate_bps: float) -> int:
    return int(max(3_000, rate_bps / 8 * _BURST_SECONDS))


#: How late the kernel may be on a busy node: with 1 ms, 1 Gbit/s lost 1 to 2 %.
_BURST_SECONDS = 0.004
#: Turns are in proportion to the rates, and should not be shorter than a segment.
_TURN_SECONDS = 0.04
#: Two frames of 4000 bytes, with the room for headers that the kernel subtracts.
_SMALLEST_SEGMENT_BYTES = 8_704
