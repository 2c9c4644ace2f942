"""What ends a part of a task from outside, without the task and the lost cancellations of asyncio.wait_for."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Any

_CANCEL_SECONDS = 1.0


class _Interruption:
    """A part of a task that `_interrupt` ends. A cancellation by others that comes with it is theirs (Python 3.11)."""

    def __init__(self) -> None:
        self._interrupted = False

    def _begin(self) -> None:
        self._task: Any = asyncio.current_task()
        self._cancels_before = getattr(self._task, "cancelling", int)()

    def _interrupt(self) -> None:
        self._interrupted = True
        self._task.cancel()

    def _is_ours(self, kind: type[BaseException] | None) -> bool:
        """Whether what the part ends with is our doing; to be asked once."""
        if not self._interrupted:
            return False
        if hasattr(self._task, "uncancel") and self._task.uncancel() > self._cancels_before:
            return False
        return kind is asyncio.CancelledError


class Deadline(_Interruption):
    """`with Deadline(seconds):` raises asyncio.TimeoutError at the `await` at which the time was over."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def __enter__(self) -> Deadline:
        self._begin()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._timer.cancel()
        if self._is_ours(kind):
            raise asyncio.TimeoutError(f"not done after {self._seconds:g} seconds") from error


class Revocable(_Interruption):
    """`with Revocable(error, among):` raises `error` at the `await` at which it was revoked.

    It is in `among` as long as it can be: who is lost takes along what others are waiting for.
    """

    def __init__(self, error: Exception, among: set[Revocable]) -> None:
        super().__init__()
        self._error, self._among = error, among

    def __enter__(self) -> None:
        self._begin()
        self._among.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._among.discard(self)
        if self._is_ours(kind):
            raise self._error from error

    def revoke(self) -> None:
        self._among.discard(self)
        self._interrupt()


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels tasks and returns when they have ended, whatever they say then.

    More than once, if need be: below Python 3.11 a deadline that is over in that moment takes it for its own doing.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_CANCEL_SECONDS)
        for task in done:
            if not task.cancelled():
                task.exception()
