"""A bounded number of things at once, of which no link may take all."""

from __future__ import annotations

from collections import Counter


class FairShare:
    """How many there are, in all and of each link (a job's, or the pilot's own).

    Of one link there may be no more than are left free for all: one that floods us gets half of `limit`, two get a
    third each, and there is always room for another one ("dynamic thresholds", Choudhury and Hahne, 1998).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of_link: Counter[int] = Counter()
        self._all = 0

    def take(self, link: int) -> bool:
        """Counts one more of `link`, if there is room for it; returns whether there was."""
        if self._of_link.get(link, 0) >= self._limit - self._all:
            return False
        self._of_link[link] += 1
        self._all += 1
        return True

    def release(self, link: int) -> None:
        """Counts one less."""
        self._all -= 1
        self._of_link[link] -= 1
        if not self._of_link[link]:
            del self._of_link[link]
