"""Who may use how much of what a gateway may carry: max-min fair among pilots, and within a pilot among its flows.

Nothing is reserved: what one does not use is the others' (work-conserving). It is decided anew ten times a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from htcondor_vpn.fair_shares import Claim, fair_shares
from htcondor_vpn.gateway.operation.shares import Need, Rates

#: How often it is decided anew, seconds.
PERIOD_SECONDS = 0.1
#: Who was not held up gets somewhat more than it used, so as to show when it wants more. In bytes a second at least.
_HEADROOM, _LEAST_HEADROOM = 1.05, 32 * 1024


class Allocator:
    """Takes what each process needs, and tells what each gets."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._needs: dict[int, dict[str, tuple[Need, Need]]] = {}

    def heard(self, process: int, needs: Iterable[tuple[str, Need, Need]], *, more: bool = False) -> None:
        """Takes what a process' `Shares.needs` told, or `more` of the same."""
        told = {pilot: (Need(*up), Need(*down)) for pilot, up, down in needs}
        self._needs[process] = {**self._needs.get(process, {}), **told} if more else told

    def gone(self, process: int) -> None:
        """Forgets a process."""
        self._needs.pop(process, None)

    def rates(self) -> dict[int, list[tuple[str, float, float]]]:
        """By process: pilots and their rates up and down, bytes a second."""
        up, down = (self._direction(index) for index in range(2))
        return {
            process: [(pilot, up[pilot, process], down[pilot, process]) for pilot in needs]
            for process, needs in self._needs.items()
        }

    def _direction(self, index: int) -> dict[tuple[str, int], float]:
        pilots: dict[str, dict[int, Need]] = {}
        for process, told in self._needs.items():
            for pilot, both in told.items():
                pilots.setdefault(pilot, {})[process] = both[index]
        claims = [
            Claim(1.0, min(max(need.limit for need in needs.values()), sum(map(_most, needs.values()))))
            for needs in pilots.values()
        ]
        total = self._rates.total[index]
        shares = fair_shares(total, claims)
        # What is left is everybody's, up to his own limit: to begin with, or to want more.
        spare = (total - sum(shares)) / max(1, len(shares)) if math.isfinite(total) else math.inf
        found: dict[tuple[str, int], float] = {}
        for (pilot, needs), share in zip(pilots.items(), shares):
            whole = min(max(need.limit for need in needs.values()), share + spare)
            within = [Claim(max(1, need.waiting), _most(need)) for need in needs.values()]
            parts = fair_shares(whole, within)
            rest = (whole - sum(parts)) / len(parts) if math.isfinite(whole) else math.inf
            found.update({(pilot, process): part + rest for process, part in zip(needs, parts)})
        return found


def _most(need: Need) -> float:
    if need.waiting:
        return math.inf
    return need.used / PERIOD_SECONDS * _HEADROOM + _LEAST_HEADROOM
