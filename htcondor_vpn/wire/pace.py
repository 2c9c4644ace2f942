"""How fast a flow may read: asked before each read, so that a limit is back-pressure and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol


class Pace(Protocol):
    """The pace of one direction, shared with other flows. Ask for `room`, read, and tell what was spent."""

    def room(self, again: Callable[[], None]) -> int:
        """Returns how many bytes may be read now; or 0, and `again` is called when it is this flow's turn."""

    def spend(self, count: int) -> None:
        """Counts bytes that were read, be it a few more than there was room for."""

    def takes(self, count: int) -> bool:
        """Counts a datagram, or returns False where it is too much: it is dropped, as by any full link."""


def takes(pace: Pace | None, count: int) -> bool:
    """As `Pace.takes`, where there may be no limit."""
    return pace is None or pace.takes(count)


class Paces(NamedTuple):
    """A flow's paces towards and from the far side; None is no limit, and costs nothing."""

    up: Pace | None = None
    down: Pace | None = None


FREE = Paces()


async def passed(pace: Pace | None, count: int) -> None:
    """Counts bytes that were moved already, and waits until it is made up for."""
    if pace is None:
        return
    pace.spend(count)
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if not pace.room(lambda: None if turn.done() else turn.set_result(None)):
        await turn
