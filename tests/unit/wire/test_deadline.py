"""What ends a part of a task, and what does not."""

import asyncio
import sys

import pytest

from htcondor_vpn.wire.deadline import Deadline, Revocable, cancel


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_deadline_ends_what_is_within():
    async def body():
        with pytest.raises(asyncio.TimeoutError), Deadline(0.01):
            await asyncio.Event().wait()
        await asyncio.sleep(0)  # and no more than that
        if sys.version_info >= (3, 11):
            assert asyncio.current_task().cancelling() == 0

    run(body())


def test_what_is_done_in_time_or_fails_by_itself_is_left_alone():
    async def body():
        with Deadline(60):
            await asyncio.sleep(0)
        with pytest.raises(ValueError, match="own"), Deadline(60):
            raise ValueError("own")

    run(body())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python does not count cancellations")
def test_a_cancellation_in_the_moment_of_the_deadline_is_not_lost():
    async def body():
        async def waits():
            with Deadline(60) as deadline:
                deadlines.append(deadline)
                await asyncio.Event().wait()

        deadlines = []
        task = asyncio.ensure_future(waits())
        while not deadlines:
            await asyncio.sleep(0)
        deadlines[0]._interrupt()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(body())


def test_what_is_revoked_ends_with_its_error():
    async def body():
        among = set()

        async def waits():
            with Revocable(KeyError("gone"), among):
                await asyncio.Event().wait()

        task = asyncio.ensure_future(waits())
        while not among:
            await asyncio.sleep(0)
        among.pop().revoke()
        with pytest.raises(KeyError, match="gone"):
            await task
        with Revocable(KeyError("gone"), among):
            assert len(among) == 1
        assert not among

    run(body())


def test_tasks_are_cancelled_until_they_end():
    async def body():
        async def stubborn():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()

        async def failing():
            raise ValueError("nobody asks")

        tasks = [asyncio.ensure_future(work()) for work in (stubborn, failing)]
        await asyncio.sleep(0)
        await cancel(tasks)
        assert all(task.done() for task in tasks)
        await cancel([])

    run(body())
