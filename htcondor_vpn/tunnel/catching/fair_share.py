"""A bounded number of things at once, of which nobody may take all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

#: Who shares with whom: what it returns for a source (an address) and the link (its index) that it comes by.
SharedBy = Callable[[str, int], Hashable]


def by_link(_source: str, interface: int) -> Hashable:
    """Each link by itself: a job's, or the pilot's own."""
    return interface


class FairShare:
    """How many there are, in all and of each owner, such as a link.

    Of one owner there may be no more than are left free for all: one that floods us gets half of `limit`, two get a
    third each, and there is always room for another one ("dynamic thresholds", Choudhury and Hahne, 1998).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of: Counter[Hashable] = Counter()
        self._all = 0

    def take(self, owner: Hashable) -> bool:
        """Counts one more of `owner`, if there is room for it; returns whether there was."""
        if self._of.get(owner, 0) >= self._limit - self._all:
            return False
        self._of[owner] += 1
        self._all += 1
        return True

    def release(self, owner: Hashable) -> None:
        """Counts one less."""
        self._all -= 1
        self._of[owner] -= 1
        if not self._of[owner]:
            del self._of[owner]
