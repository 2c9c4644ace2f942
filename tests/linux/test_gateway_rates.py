"""Limits of rates hold over all workers of a gateway, and pilots share them fairly."""

import asyncio
import contextlib
import time

import pytest
from gateway_flows import echo_server, operated, run, source


@pytest.fixture
def start(site, tmp_path):
    with operated(site, tmp_path) as start:
        yield start


async def take(stream, counts, pilot):
    while True:
        data = await stream.read(262144)
        counts[pilot] += len(data)


async def rates(counts, seconds=4.0):
    """Mbit/s of each pilot."""
    before, since = dict(counts), time.monotonic()
    await asyncio.sleep(seconds)
    elapsed = time.monotonic() - since
    return {pilot: (count - before[pilot]) * 8 / 1e6 / elapsed for pilot, count in counts.items()}


def as_wanted(found):
    """Whether the limits hold and are shared fairly; a busy machine carries less."""
    fair = (sum(found.values()) - found["slow"]) / 3
    shares = [found[name] == pytest.approx(fair, rel=0.25) for name in ("one", "four", "nine")]
    return 0.5 * 60 < sum(found.values()) < 1.1 * 60 and found["slow"] < 6 and all(shares)


@pytest.mark.alone
def test_pilots_with_different_numbers_of_flows_share_a_limit(site, start):
    gateway, client = start(DOWN_MBPS=60, PILOT_RATES="slow=5")
    tokens = {name: gateway.token("add", name).strip() for name in ("one", "four", "nine", "slow")}
    wanted = {"one": 1, "four": 4, "nine": 9, "slow": 2}

    async def body():
        async with echo_server(site, serve=source):
            counts, tasks, since = dict.fromkeys(wanted, 0), [], time.monotonic()
            for name in [name for name, count in wanted.items() for _ in range(count)]:
                stream = await client.flow(token=tokens[name])
                tasks.append(asyncio.ensure_future(take(stream, counts, name)))
            await asyncio.sleep(2)  # until they have found their shares
            seen = []
            while len(seen) < 3 and not any(map(as_wanted, seen)):  # who is held up just then sees another rate
                seen.append(await rates(counts))
            elapsed = time.monotonic() - since
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert any(map(as_wanted, seen)), seen
            assert sum(counts.values()) * 8 / 1e6 < 1.1 * 60 * elapsed
            assert counts["slow"] * 8 / 1e6 < 6 * elapsed

    run(body())


async def give(stream, name):
    """Tells who it is, and sends without end."""
    await stream.write(f"{name}\n".encode())
    while True:
        await stream.write(bytes(65536))


def counter(counts):
    """What serves those who `give`, and counts what arrives of each."""

    async def count(sock):
        loop, said = asyncio.get_running_loop(), b""
        with sock, contextlib.suppress(OSError):
            while b"\n" not in said:
                said += await loop.sock_recv(sock, 4096)
            name = said.partition(b"\n")[0].decode()
            while data := await loop.sock_recv(sock, 262144):
                counts[name] += len(data)

    return count


@pytest.mark.alone
@pytest.mark.parametrize("direction", ["UP", "DOWN"])
def test_twenty_pilots_share_within_five_percent(site, start, direction):
    """With one to three flows each, over two workers."""
    gateway, client = start(**{f"{direction}_MBPS": 40})
    names = [f"pilot{number}" for number in range(20)]
    tokens = {name: gateway.token("add", name).strip() for name in names}
    counts = dict.fromkeys(names, 0)

    async def body():
        async with echo_server(site, serve=source if direction == "DOWN" else counter(counts)):
            tasks = []
            for number, name in enumerate(names):
                for _ in range(1 + number % 3):
                    stream = await client.flow(token=tokens[name])
                    moving = take(stream, counts, name) if direction == "DOWN" else give(stream, name)
                    tasks.append(asyncio.ensure_future(moving))
            await asyncio.sleep(4)  # until they have found their shares
            seen = []
            while len(seen) < 3 and not any(map(within_five_percent, seen)):
                seen.append(await rates(counts, 8.0))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert any(map(within_five_percent, seen)), seen

    run(body())


def within_five_percent(found):
    """Whether twenty pilots share 40 Mbit/s equally; a busy machine carries less."""
    mean = sum(found.values()) / len(found)
    return 1 < mean <= 2.1 and all(rate == pytest.approx(mean, rel=0.05) for rate in found.values())
