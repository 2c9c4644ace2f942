"""The descriptors of this process: what it holds of its parent's, and how many more it may open."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Container

_COUNT_SECONDS = 0.5
_SPARE = 8


def close_all_but(keep: Container[int]) -> None:
    """Closes every descriptor of this process that is not in `keep`."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own descriptor


class DescriptorBudget:
    """Whether there are descriptors left for something that will need some, a little later and one after the other.

    Who begins more than can be finished holds what all of them need, and none gets on.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._counted_at = -_COUNT_SECONDS
        self._promised = 0

    def take(self, unfinished: int) -> bool:
        """Promises what one more thing needs, beside so many `unfinished` ones; returns False if that is not left."""
        now = time.monotonic()
        if now - self._counted_at >= _COUNT_SECONDS:
            try:
                there = len(os.listdir("/proc/self/fd"))
            except OSError:  # not even one to count them by
                return False
            self._promised = there + self._each * unfinished + _SPARE
            self._counted_at = now
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self._promised + self._each > limit:
            return False
        self._promised += self._each
        return True
