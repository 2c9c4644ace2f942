"""Time in which others may come back: what this process is stopped for meanwhile does not count.

While it is stopped (SIGSTOP) it hears nobody, and when it goes on, an ordinary timer is over before it has heard those
who came in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_STEPS = 10


class Grace:
    """Calls `over` after `seconds`, unless it is cancelled before."""

    def __init__(self, seconds: float, over: Callable[[], None]) -> None:
        self._seconds, self._over = seconds / _STEPS, over
        self._left = _STEPS
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._step)

    def cancel(self) -> None:
        self._timer.cancel()

    def _step(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._step)
        else:
            self._over()
