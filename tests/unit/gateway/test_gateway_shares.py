"""Limits of rates at a gateway of one process: they are kept, shared, and cost nobody else anything."""

import asyncio
import contextlib
import math
import time

import pytest

from htcondor_vpn.gateway.operation.shares import Rates, Share, Shares
from htcondor_vpn.wire.pace import FREE, passed

MB = 1_000_000


async def source(sock):
    """Sends without end."""
    with contextlib.suppress(OSError):
        while True:
            await asyncio.get_running_loop().sock_sendall(sock, bytes(65536))


async def sink(sock):
    """Takes without end."""
    with contextlib.suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(sock, 65536):
            pass


async def move(stream, direction):
    """Reads from a flow, or writes to it, without end."""
    while True:
        if direction == "down":
            await stream.read(262144)
        else:
            await stream.write(bytes(16384))


async def rates_of(gateway, streams, wanted, direction="down", settle_seconds=0.5, seconds=1.5):
    """Bytes a second of each of the gateway's flows, in the order in which they began, once they have settled.

    They are measured again, three times at most, if they are not as `wanted` says: a machine may be held up.
    """

    def counts():
        return [sum(flow.bytes) for _, flow in sorted(gateway.gateway.roster.flows._live.items())]

    tasks = [asyncio.ensure_future(move(stream, direction)) for stream in streams]
    await asyncio.sleep(settle_seconds)
    for _ in range(3):
        before, since = counts(), time.monotonic()
        await asyncio.sleep(seconds)
        elapsed = time.monotonic() - since
        found = [(after - count) / elapsed for after, count in zip(counts(), before)]
        if wanted(found):
            break
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


@pytest.mark.alone
@pytest.mark.parametrize(("direction", "far"), [("down", source), ("up", sink)])
async def test_a_pilots_flows_share_its_rate(running, far_side, direction, far):
    shares = Shares(Rates(pilot=(4 * MB, 4 * MB)))
    async with running(shares=shares) as gateway, far_side(far) as port:
        streams = [await gateway.flow(port) for _ in range(5)]

        def shared(found):
            shares = [rate == pytest.approx(sum(found) / 5, rel=0.25) for rate in found]
            return 2 * MB < sum(found) < 4.4 * MB and all(shares)  # a busy machine carries less

        found = await rates_of(gateway, streams, shared, direction)
        assert shared(found), found


@pytest.mark.alone
async def test_another_pilot_is_not_held_up(running, far_side):
    rates = Rates(pilot=(math.inf, math.inf), particular=(("al*", MB, MB),))
    async with running(shares=Shares(rates)) as gateway, far_side(source) as port:
        bob = gateway.tokens.add("bob")

        def apart(found):
            return found[0] < 1.1 * MB and found[1] > 2 * found[0]

        found = await rates_of(gateway, [await gateway.flow(port), await gateway.flow(port, token=bob)], apart)
        assert apart(found), found


@pytest.mark.alone
async def test_what_the_gateway_answers_itself_counts_too(running):
    async with running(shares=Shares(Rates(pilot=(MB, MB)))) as gateway:
        client = await gateway.client()
        start = time.monotonic()
        for _ in range(8):
            body = b"x" * 100_000
            assert (await gateway.ask(client, "POST", "/.well-known/htcondor-vpn/bytes", body)).status == 200
        assert time.monotonic() - start > 0.6


def test_no_limit_is_free():
    assert Shares(Rates()).of("alice") is FREE
    assert Shares(Rates(pilot=(1, 1), particular=(("a*", math.inf, math.inf),))).of("alice") is FREE


async def test_all_flows_of_a_pilot_have_one_share_and_it_is_forgotten_with_the_last():
    shares = Shares(Rates(total=(100, 100)))
    one = shares.of("alice")
    assert shares.of("alice") == one
    assert shares.of("bob") != one
    shares.forget_all_but({"bob"})
    assert shares.of("alice") != one


async def test_needs_tell_of_use_and_of_waiting():
    shares = Shares(Rates(total=(MB, MB)), processes=2)
    paces = shares.of("alice")
    assert shares.needs() == []
    again = []
    paces.up.spend(10 * MB)
    assert paces.up.room(lambda: again.append(1)) == 0
    ((pilot, up, down),) = shares.needs()
    assert (pilot, up.used, up.waiting, down.used, down.waiting) == ("alice", 10 * MB, 1, 0, 0)
    shares.set_rates([("alice", math.inf, math.inf), ("gone", 1, 1)])
    assert paces.down.room(again.clear) > 0
    while not again:
        await asyncio.sleep(0.01)


async def test_a_flow_that_has_ended_takes_no_turn():
    share = Share(MB, MB)
    share.spend(MB // 10)
    taken = []

    async def taker(number):
        await passed(share, 1000)
        taken.append(number)

    ended, other = asyncio.ensure_future(taker(1)), asyncio.ensure_future(taker(2))
    await asyncio.sleep(0)
    ended.cancel()
    await other
    assert taken == [2]


async def test_datagrams_are_dropped_beyond_a_burst():
    share = Share(MB, MB)
    sent = sum(share.takes(1000) for _ in range(1000))
    assert 20 <= sent <= 150  # 50 ms' worth, and what trickled in
