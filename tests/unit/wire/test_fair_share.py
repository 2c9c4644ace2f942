from __future__ import annotations

import asyncio
from collections import Counter

from htcondor_vpn.wire.fair_share import FairShare, FairTurns


def taken(share: FairShare, link: int) -> int:
    """How many of very many one link gets."""
    return sum(share.take(link) for _ in range(1000))


def test_one_gets_half_and_there_is_always_room_for_another() -> None:
    share = FairShare(64)
    assert [taken(share, link) for link in range(6)] == [32, 16, 8, 4, 2, 1]


def test_what_is_released_can_be_taken_again() -> None:
    share = FairShare(8)
    assert taken(share, 1) == 4
    for _ in range(4):
        share.release(1)
    assert taken(share, 2) == 4


class Visitors:
    """Some who want a turn of the same `FairTurns`, and stay until they are told to go."""

    def __init__(self, limit: int) -> None:
        self.turns = FairTurns(limit)
        self.within: Counter[str] = Counter()
        self.tasks: dict[str, list[asyncio.Task[None]]] = {}
        self.leave = asyncio.Semaphore(0)

    async def come(self, owner: str, count: int) -> None:
        self.tasks.setdefault(owner, []).extend(asyncio.ensure_future(self._visit(owner)) for _ in range(count))
        await settled()

    async def _visit(self, owner: str) -> None:
        async with self.turns.turn(owner):
            self.within[owner] += 1
            await self.leave.acquire()
            self.within[owner] -= 1

    async def go(self, count: int) -> None:
        for _ in range(count):
            self.leave.release()
        await settled()


async def settled() -> None:
    """Returns when every task has done what it can."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_who_comes_does_not_wait_behind_anothers_queue() -> None:
    async def body() -> None:
        visitors = Visitors(8)
        await visitors.come("flood", 1000)
        assert visitors.within["flood"] == 4
        await visitors.come("one", 1)
        assert visitors.within["one"] == 1
        await visitors.go(1001)
        await asyncio.gather(*(task for tasks in visitors.tasks.values() for task in tasks))
        assert not any(visitors.within.values())
        await visitors.come("after", 4)
        assert visitors.within["after"] == 4
        await visitors.go(4)

    asyncio.run(body())


def test_those_that_wait_have_their_turns_by_owner() -> None:
    async def body() -> None:
        visitors = Visitors(2)
        await visitors.come("first", 1)
        await visitors.come("second", 1)
        await visitors.come("flood", 5)
        await visitors.come("late", 1)
        assert (visitors.within["flood"], visitors.within["late"]) == (0, 0)
        await visitors.go(2)
        assert (visitors.within["flood"], visitors.within["late"]) == (1, 1)
        await visitors.go(7)

    asyncio.run(body())


def test_who_gives_up_waiting_takes_nobodys_turn() -> None:
    async def body() -> None:
        visitors = Visitors(2)
        await visitors.come("a", 1)
        await visitors.come("b", 1)
        await visitors.come("given up", 2)
        for task in visitors.tasks["given up"]:
            task.cancel()
        await settled()
        await visitors.come("patient", 1)
        assert visitors.within["patient"] == 0
        await visitors.go(1)
        assert visitors.within["patient"] == 1
        await visitors.go(2)

    asyncio.run(body())
