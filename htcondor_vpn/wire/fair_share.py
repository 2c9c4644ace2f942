"""A bounded number of things at once, of which nobody may take all."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class FairShare:
    """How many there are, in all and of each owner, such as a link.

    Of one owner there may be no more than are left free for all: one that floods us gets half of `limit`, two get a
    third each, and there is always room for another one ("dynamic thresholds", Choudhury and Hahne, 1998).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._of: Counter[Hashable] = Counter()
        self._all = 0

    def take(self, owner: Hashable) -> bool:
        """Counts one more of `owner`, if there is room for it; returns whether there was."""
        if self._of.get(owner, 0) >= self.limit - self._all:
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


class FairTurns:
    """As many at once as a `FairShare` of `limit` allows; the others wait, and nobody behind another owner's."""

    def __init__(self, limit: int) -> None:
        self._share = FairShare(limit)
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, owner: Hashable) -> AsyncIterator[None]:
        """Waits until it is `owner`'s turn, which lasts as long as one is within."""
        await self.begin(owner)
        try:
            yield
        finally:
            self.end(owner)

    async def begin(self, owner: Hashable) -> None:
        """Waits until it is `owner`'s turn, which lasts until `end`: for what may outlast the one who waits for it."""
        if owner in self._waiting or not self._share.take(owner):
            await self._wait(owner)

    def end(self, owner: Hashable) -> None:
        """Ends one turn of `owner`'s."""
        self._share.release(owner)
        for each in list(self._waiting):
            turns = self._waiting.pop(each)
            while turns and turns[0].cancelled():
                turns.popleft()
            if turns and self._share.take(each):
                turns.popleft().set_result(None)
            if turns:
                self._waiting[each] = turns  # behind the others

    async def _wait(self, owner: Hashable) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had just come
                self.end(owner)
            raise
