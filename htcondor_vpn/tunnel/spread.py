"""In which order several that could do something are asked, so that each gets its share of the first places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Spread(Generic[Item]):
    """Smooth weighted round robin, as nginx has it: shares of 3 and 1 give A A B A, not A A A B.

    In each round everyone gains its share, and who leads has its turn and pays what all have gained.
    """

    def __init__(self) -> None:
        self._credits: dict[Item, float] = {}

    def order(self, shares: Mapping[Item, float]) -> list[Item]:
        """Returns all items, the one whose turn it is first; shares are positive, and zero if they all are."""
        total = sum(shares.values())
        gains = shares if total else dict.fromkeys(shares, 1.0)
        total = total or float(len(shares))
        known = {item: self._credits.get(item, 0.0) + gain / total for item, gain in gains.items()}
        ordered = sorted(known, key=lambda item: -known[item])  # a stable sort: of equals the first
        if ordered:
            known[ordered[0]] -= 1.0
        self._credits = {**{item: self._credits[item] for item in self._credits if item not in known}, **known}
        return ordered

    def forget(self, item: Item) -> None:
        """Takes no more account of an item that is gone."""
        self._credits.pop(item, None)
