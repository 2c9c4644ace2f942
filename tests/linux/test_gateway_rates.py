"""Limits of rates hold over all workers of a gateway, and pilots share them fairly, by the gateway's own count."""

import asyncio
import time

import pytest
from gateway_flows import echo_server, operated, run, source


@pytest.fixture
def start(site, tmp_path):
    with operated(site, tmp_path) as start:
        yield start


async def take(stream):
    while True:
        await stream.read(262144)


async def rates(gateway, settle_seconds=2.0, seconds=4.0):
    """Mbit/s down of each pilot."""

    def counts():
        told = gateway.status()["pilots"]
        return {pilot: count["bytes_down"] for pilot, count in told.items()}, time.monotonic()

    loop = asyncio.get_running_loop()
    await asyncio.sleep(settle_seconds)
    before, since = await loop.run_in_executor(None, counts)
    await asyncio.sleep(seconds)
    after, until = await loop.run_in_executor(None, counts)
    return {pilot: (count - before.get(pilot, 0)) * 8 / 1e6 / (until - since) for pilot, count in after.items()}


def test_pilots_with_different_numbers_of_flows_share_a_limit(site, start):
    gateway, client = start(DOWN_MBPS=60, PILOT_RATES="slow=5")
    tokens = {name: gateway.token("add", name).strip() for name in ("one", "four", "nine", "slow")}
    counts = {"one": 1, "four": 4, "nine": 9, "slow": 2}

    async def body():
        async with echo_server(site, serve=source):
            flows = [await client.flow(token=tokens[name]) for name, count in counts.items() for _ in range(count)]
            tasks = [asyncio.ensure_future(take(stream)) for stream in flows]
            found = await rates(gateway)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert 0.5 * 60 < sum(found.values()) < 1.1 * 60  # a busy machine carries less
            assert found["slow"] < 6
            fair = (sum(found.values()) - found["slow"]) / 3
            for name in ("one", "four", "nine"):
                assert found[name] == pytest.approx(fair, rel=0.25)

    run(body())
