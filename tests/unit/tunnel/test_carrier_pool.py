"""Spreading over carriers, leaving and taking them back, and choosing among pools, with carriers that are told."""

import asyncio
from ipaddress import ip_address

import pytest

from htcondor_vpn.errors import GatewayUnreachable, TokenRefused, VpnError
from htcondor_vpn.tunnel.carrier import Answer
from htcondor_vpn.tunnel.ladder import Ladder
from htcondor_vpn.tunnel.pool import Pool

V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


class Fake:
    """A carrier whose probes say what `state` is: families, or an error."""

    start_seconds = 0.0

    def __init__(self, name, state=("ipv4", "ipv6")):
        self.name, self.state, self.flows = name, state, 0
        self.unreachable = False

    async def open_flow(self, address, port):
        if self.unreachable:
            raise GatewayUnreachable(f"{self.name} is not there")
        self.flows += 1
        return self.name, b""

    async def ask_dns(self, query):
        return query

    async def probe(self):
        if isinstance(self.state, VpnError):
            raise self.state
        return Answer(self.state, 1.0)

    async def lost(self):
        await asyncio.Event().wait()

    def forget(self):
        pass


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


class Running:
    """A pool that runs; `until` waits for something to become true after one of its changes."""

    def __init__(self, *carriers):
        self.pool = Pool("fake", carriers, 0.01, 1)
        self.changed = asyncio.Event()

    async def __aenter__(self):
        self.task = asyncio.ensure_future(self.pool.run(lambda _: self.changed.set()))
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, wanted):
        while not wanted():
            self.changed.clear()
            await self.changed.wait()


def healthy(pool):
    return [known.carrier.name for known in pool.healthy()]


def test_flows_are_spread_and_a_lost_carrier_is_left_and_taken_back():
    async def body():
        one, two = Fake("one"), Fake("two")
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            for _ in range(10):
                await running.pool.open_flow(V4, 80)
            assert (one.flows, two.flows) == (5, 5)
            one.state = GatewayUnreachable("gone")
            await running.until(lambda: healthy(running.pool) == ["two"])
            for _ in range(10):
                await running.pool.open_flow(V4, 80)
            assert (one.flows, two.flows) == (5, 15)
            one.state = ("ipv4",)
            await running.until(lambda: healthy(running.pool) == ["one", "two"])

    run(body())


def test_a_carrier_that_has_just_gone_costs_no_flow():
    async def body():
        one, two = Fake("one"), Fake("two")
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            one.unreachable = True
            assert {(await running.pool.open_flow(V4, 80))[0] for _ in range(4)} == {"two"}
            two.unreachable = True
            with pytest.raises(GatewayUnreachable, match="is not there"):
                await running.pool.open_flow(V4, 80)

    run(body())


def test_a_family_goes_by_who_reaches_it():
    async def body():
        one, two = Fake("one", ("ipv4",)), Fake("two", ("ipv6",))
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            assert running.pool.families == ("ipv4", "ipv6")
            assert {(await running.pool.open_flow(V6, 80))[0] for _ in range(4)} == {"two"}

    run(body())


def test_a_pool_ends_when_none_is_left_with_what_says_most():
    pool = Pool("fake", [Fake("one", GatewayUnreachable("a")), Fake("two", TokenRefused("b"))], 0.01, 1)
    assert isinstance(run(pool.run(lambda _: None)), TokenRefused)


async def climbed(pools, wanted):
    """Runs a ladder until it says what is `wanted`; returns all that it said."""
    said, over = [], asyncio.Event()
    ladder = Ladder(pools)

    def changed():
        said.append(ladder.now)
        if wanted(ladder.now):
            over.set()

    task = asyncio.ensure_future(ladder.run(changed))
    await over.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return said


def test_the_first_that_works_is_taken():
    pools = [Pool(name, [carrier], 0.01, 1) for name, carrier in
             (("a", Fake("x", GatewayUnreachable("no way"))), ("b", Fake("y")), ("c", Fake("z")))]  # fmt: skip
    said = run(climbed(pools, lambda what: isinstance(what, Pool)))
    assert said[-1].engine == "b"
    assert "a: no way" in str(said[0])


def test_what_may_mend_is_no_final_refusal():
    pools = [Pool("a", [Fake("x", TokenRefused("bad token"))], 0.01, 1),
             Pool("b", [Fake("y", GatewayUnreachable("no way"))], 0.01, 1)]  # fmt: skip
    said = run(climbed(pools, lambda what: "no way" in str(what)))
    assert type(said[-1]) is GatewayUnreachable
    assert "a: bad token; b: no way" in str(said[-1])
