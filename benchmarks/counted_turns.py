"""One transfer during which a job's packets are counted and not counted in turns: the same connections meet both.

What the machine does besides, and how connections happen to share it, differs from transfer to transfer by more than
counting costs, but little from one third of a second to the next. Not counted is what the kernel does while the table
of the jobs' rules is dormant (nft(8)): it is all there, and no packet comes to it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from htcondor_vpn.jobnet.counting.rules import TABLE
from htcondor_vpn.linux.namespaces import capabilities_to_programs
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.testbed import timed_traffic

#: Connections have found their speed by then.
_WARM_UP_SECONDS = 2.0
#: A turn's first part is for the change from one to the other.
_PARTS, _PART_SECONDS = 3, 0.1
TURN_SECONDS = _PARTS * _PART_SECONDS
_TIMEOUT_SECONDS = 60.0


class Rates(NamedTuple):
    """What arrived, in Mbit/s of payload: for each turn in which packets were counted, and for the turn beside it."""

    counted: list[float]
    bare: list[float]

    def plus(self, other: Rates) -> Rates:
        return Rates(self.counted + other.counted, self.bare + other.bare)

    @property
    def median_counted(self) -> float:
        return statistics.median(self.counted)

    @property
    def median_bare(self) -> float:
        return statistics.median(self.bare)

    @property
    def ratio(self) -> float:
        """The median of what each pair of turns says."""
        return statistics.median(one / other for one, other in zip(self.counted, self.bare))


def server(addresses: Sequence[object], port: int) -> list[str]:
    """The argv of the far side; it prints a line when it listens."""
    return _argv("serve", *addresses, port)


def in_turns(
    start: Callable[[list[str]], subprocess.Popen[str]], address: object, port: int, way: str, flows: int, pairs: int
) -> Rates:
    """Has the job, in which `start` starts an argv, transfer to (`way` "up") or from the far side at `address`.

    Call it in the network namespace of the job's link, with capabilities there. Raises RuntimeError.
    """
    # The first of each pair is counted, then the second, and so on, so that what grows or fades favours neither.
    order = [counted for pair in range(pairs) for counted in ((True, False), (False, True))[pair % 2]]
    begin = time.monotonic() + _WARM_UP_SECONDS
    end = begin + TURN_SECONDS * len(order)
    verb = "put" if way == "up" else "get"
    client = start(_argv(verb, address, port, begin, end, flows, len(order) * _PARTS))
    try:
        for number, counted in enumerate(order):
            time.sleep(max(begin + number * TURN_SECONDS - time.monotonic(), 0))
            _switch(counted)
        out, _ = client.communicate(timeout=_TIMEOUT_SECONDS)
    finally:
        _switch(True)
        client.kill()
        client.wait()
    if client.returncode:
        raise RuntimeError(f"the transfer failed with {client.returncode}")
    parts = list(map(int, out.split()))
    rates: dict[bool, list[float]] = {True: [], False: []}
    for number, counted in enumerate(order):
        arrived = sum(parts[number * _PARTS + 1 : (number + 1) * _PARTS])
        rates[counted].append(arrived * 8e-6 / (TURN_SECONDS - _PART_SECONDS))
    return Rates(rates[True], rates[False])


def _argv(*words: object) -> list[str]:
    return [sys.executable, "-IS", timed_traffic.__file__, *map(str, words)]


def _switch(counted: bool) -> None:
    rules = f"table inet {TABLE} {{ {'' if counted else 'flags dormant;'} }}\n"
    run_program([find_program("nft", "nftables"), "-f", "-"], stdin=rules, preexec=capabilities_to_programs)
