"""A deadline around a part of a task, without the task and the lost cancellations of asyncio.wait_for."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Deadline:
    """`with Deadline(seconds):` raises asyncio.TimeoutError at the `await` at which the time was over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> Deadline:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError:
            raise asyncio.TimeoutError(f"not done after {self._seconds:g} seconds") from error

    def _expire(self) -> None:
        self._expired = True
        assert self._task is not None
        self._task.cancel()
