"""How long others are waited for by a process that may be stopped meanwhile."""

import asyncio
import time

from htcondor_vpn.jobnet.grace import Grace


def test_it_is_over_in_time():
    async def body():
        loop = asyncio.get_running_loop()
        over, begin = asyncio.Event(), loop.time()
        Grace(0.3, over.set)
        await asyncio.wait_for(over.wait(), 60)
        assert loop.time() - begin >= 0.29

    asyncio.run(body())


def test_being_stopped_costs_those_who_come_next_to_nothing():
    async def body():
        over = asyncio.Event()
        grace = Grace(0.2, over.set)
        time.sleep(0.3)  # the loop does as little meanwhile as in a process that is stopped
        for _ in range(5):  # turns of the loop
            await asyncio.sleep(0)
        assert not over.is_set()
        grace.cancel()

    asyncio.run(body())
