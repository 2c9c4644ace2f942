"""One thread's events: descriptors that become readable, and timers; handled until something is done."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from typing import Protocol, Union

Action = Callable[[], None]


class HasFileno(Protocol):
    def fileno(self) -> int: ...


Watched = Union[int, HasFileno]


class Loop:
    """Actions may watch, forget, and set timers; one that raises ends the waiting with that exception."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()
        self._timers: list[tuple[float, Action]] = []

    def watch(self, descriptor: Watched, action: Action) -> None:
        """Has `action` called whenever `descriptor` is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, action)

    def watches(self, descriptor: Watched) -> bool:
        return descriptor in self._selector.get_map()

    def forget(self, descriptor: Watched) -> None:
        """Watches `descriptor` no more; it need not have been watched."""
        if self.watches(descriptor):
            self._selector.unregister(descriptor)

    def after(self, seconds: float, action: Action) -> None:
        """Has `action` called once, in `seconds`."""
        self._timers.append((time.monotonic() + seconds, action))

    def run_until(self, done: Callable[[], bool], timeout_seconds: float | None = None) -> bool:
        """Handles events until `done`, which it returns; False after `timeout_seconds`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not done():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            self._run_timers(now)
            ends = [timer[0] for timer in self._timers] + ([] if deadline is None else [deadline])
            self._select(max(0.0, min(ends) - time.monotonic()) if ends else None)
        return True

    def fileno(self) -> int:
        """What is readable when a descriptor is, for who has another loop around this one."""
        return self._selector.fileno()

    def turn(self) -> None:
        """Handles what there is to handle now."""
        self._run_timers(time.monotonic())
        self._select(0.0)

    def _run_timers(self, now: float) -> None:
        for timer in [timer for timer in self._timers if timer[0] <= now]:
            self._timers.remove(timer)  # before, as it may raise: the others are still due then
            timer[1]()

    def _select(self, wait: float | None) -> None:
        for key, _ in self._selector.select(wait):
            # An earlier event of this round may have ended it, and its number may be another one's by now.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
