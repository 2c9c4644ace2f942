"""What TCP sends again, which is counted like all that is sent: a machine that stalls has it happen, and much of it."""

from __future__ import annotations

from typing import Any

import pytest

from htcondor_vpn.jobnet.place import TUNNEL_MTU

#: Of a job's link, with its Ethernet header.
_LARGEST_FRAME_BYTES = TUNNEL_MTU + 14


class Resends:
    """What the network namespace of the process `pid` sends again from now on, also when that process has ended."""

    def __init__(self, pid: int) -> None:
        self._counters = open(f"/proc/{pid}/net/snmp", encoding="ascii")  # noqa: SIM115  (it holds the namespace's)
        self._before = 0
        self._before = self.segments()

    def __enter__(self) -> Resends:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._counters.close()

    def segments(self) -> int:
        self._counters.seek(0)
        return resent_segments(self._counters.read()) - self._before


def resent_segments(counters: str) -> int:
    """The segments that were sent again, of `/proc/net/snmp` (RFC 4022)."""
    names, values = (line.split() for line in counters.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


def between(least: float, most: float, resent: int) -> Any:
    """What is counted of a transfer: all that has arrived, and at most all that was sent, in `resent` segments again.

    `least` and `most` are the bounds where nothing is sent again.
    """
    most += resent * _LARGEST_FRAME_BYTES
    return pytest.approx((least + most) / 2, abs=(most - least) / 2)


def payload(size: int, resent: int, tolerance: float = 0.01) -> Any:
    """What `payload_bytes` tells of a transfer of `size` bytes; `tolerance` is for what is neither they nor headers."""
    return between(size * (1 - tolerance), size * (1 + tolerance), resent)
