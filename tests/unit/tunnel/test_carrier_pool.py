"""Spreading over carriers, leaving them and taking them back, with carriers that are told."""

import asyncio

import pytest
from fake_carriers import V4, V6, Changing, Fake, Running, healthy, run

from htcondor_vpn.errors import GatewayUnreachable, GatewayUntrusted, TokenRefused
from htcondor_vpn.tunnel.engine import CarrierReport
from htcondor_vpn.tunnel.members import Lone
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.tunnel.spread import Spread


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


class Renewed(Fake):
    """A gateway that has another key for new connections, while the probes' connection is kept."""

    kept = True

    async def open_flow(self, address, port):
        raise GatewayUntrusted(f"{self.name} has another key")

    async def probe(self):
        if not self.kept:
            raise GatewayUntrusted(f"{self.name} has another key")
        return await super().probe()

    def forget(self):
        super().forget()
        self.kept = False


def test_one_whose_key_is_another_for_new_connections_is_left():
    async def body():
        one, two = Renewed("one"), Fake("two")
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            assert {(await running.pool.open_flow(V4, 80))[0] for _ in range(4)} == {"two"}
            await running.until(lambda: healthy(running.pool) == ["two"])
            assert [report.reason for report in running.pool.told()] == ["one has another key", ""]

    run(body())


def test_one_that_is_doubted_for_nothing_stays():
    async def body():
        one = Renewed("one")
        one.forget = lambda: None  # by a new connection, too, it is who it was
        async with Running(one) as running:
            await running.until(lambda: healthy(running.pool) == ["one"])
            with pytest.raises(GatewayUntrusted):
                await running.pool.open_flow(V4, 80)
            for _ in range(5):
                running.changed.clear()
                await running.changed.wait()
                assert healthy(running.pool) == ["one"]

    run(body())


def test_a_family_goes_by_who_reaches_it():
    async def body():
        one, two = Fake("one", ("ipv4",)), Fake("two", ("ipv6",))
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            assert running.pool.families == ("ipv4", "ipv6")
            assert {(await running.pool.open_flow(V6, 80))[0] for _ in range(4)} == {"two"}

    run(body())


def test_weights_and_load_make_the_shares():
    async def body():
        one, two, three = Fake("one"), Fake("two", load=0.5), Fake("three", load=1.0)
        async with Running(Lone(one, 3.0), Lone(two, 2.0), Lone(three)) as running:
            await running.until(lambda: len(running.pool.healthy()) == 3)
            for _ in range(40):
                await running.pool.open_flow(V4, 80)
            return one.flows, two.flows, three.flows

    assert run(body()) == (30, 10, 0)


def test_who_asks_names_between_flows_has_the_flows_spread_all_the_same():
    async def body():
        one, two = Fake("one"), Fake("two")
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            for _ in range(10):
                await running.pool.ask_dns(b"")
                await running.pool.open_flow(V4, 80)
            return one.flows, two.flows

    assert run(body()) == (5, 5)


@pytest.mark.parametrize("reserve", [{"load": 1.0}, {"draining": True}])
def test_one_that_is_full_or_drains_is_used_while_there_is_no_other(reserve):
    async def body():
        one, two = Fake("one", **reserve), Fake("two")
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            for _ in range(4):
                await running.pool.open_flow(V4, 80)
            assert (one.flows, two.flows) == (0, 4)
            two.unreachable = True  # not noticed yet
            await running.pool.open_flow(V4, 80)
            two.state = GatewayUnreachable("gone")
            await running.until(lambda: healthy(running.pool) == ["one"])
            await running.pool.open_flow(V4, 80)
            return one.flows

    assert run(body()) == 2


def test_what_is_told_of_each():
    async def body():
        one, two = Fake("one", load=0.25, draining=True), Fake("two", GatewayUnreachable("x" * 999))
        name = Changing()
        name.now = GatewayUnreachable("no such name")
        async with Running(one, two, name) as running:
            await running.until(lambda: len(running.pool.told()) == 3 and len(running.pool.told()[1].reason) > 50)
            return running.pool.told()

    one, two, three = run(body())
    assert one == CarrierReport("one", load=0.25, draining=True)
    assert (two.up, len(two.reason)) == (False, 120)
    assert (three.name, three.up, three.reason) == ("name:1", False, "no such name")


def test_weight_0_is_a_reserve():
    async def body():
        one, two = Fake("one"), Fake("two")
        async with Running(Lone(one, 0.0), Lone(two)) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            for _ in range(4):
                await running.pool.open_flow(V4, 80)
            assert (one.flows, two.flows) == (0, 4)
            two.unreachable = True
            await running.pool.open_flow(V4, 80)
            return one.flows

    assert run(body()) == 1


def test_two_addresses_of_one_gateway_have_one_share():
    async def body():
        one, same, other = Fake("one", instance="a"), Fake("same", instance="a"), Fake("other", instance="b")
        async with Running(Changing(one, same), other) as running:
            await running.until(lambda: len(running.pool.healthy()) == 3)
            for _ in range(10):
                await running.pool.open_flow(V4, 80)
            assert (one.flows, same.flows, other.flows) == (5, 0, 5)
            one.state = GatewayUnreachable("gone")
            await running.until(lambda: healthy(running.pool) == ["same", "other"])
            for _ in range(10):
                await running.pool.open_flow(V4, 80)
            return same.flows, other.flows

    assert run(body()) == (5, 10)


def test_what_is_being_opened_through_one_that_is_lost_goes_through_another():
    async def body():
        one, two = Fake("one"), Fake("two")
        one.silent = True
        async with Running(one, two) as running:
            await running.until(lambda: len(running.pool.healthy()) == 2)
            opening = [asyncio.ensure_future(running.pool.open_flow(V4, 80)) for _ in range(4)]
            await asyncio.wait(opening, return_when=asyncio.FIRST_COMPLETED)
            assert two.flows == 2
            one.state = GatewayUnreachable("gone")
            return {name for name, _ in await asyncio.gather(*opening)}

    assert run(body()) == {"two"}


def test_what_is_being_opened_through_the_only_one_fails_with_it():
    async def body():
        one = Fake("one")
        one.silent = True
        async with Running(one) as running:
            await running.until(lambda: running.pool.healthy())
            opening = asyncio.ensure_future(running.pool.open_flow(V4, 80))
            while not opening.done():
                one.state = GatewayUnreachable("gone")
                await asyncio.sleep(0.01)
            with pytest.raises(GatewayUnreachable, match="was lost meanwhile"):
                opening.result()

    run(body())


def test_who_stops_to_wait_is_not_kept():
    async def body():
        one = Fake("one")
        one.silent = True
        async with Running(one) as running:
            await running.until(lambda: running.pool.healthy())
            opening = asyncio.ensure_future(running.pool.open_flow(V4, 80))
            await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening

    run(body())


def test_smooth_weighted_round_robin():
    spread = Spread()
    assert [spread.order({"a": 3.0, "b": 1.0})[0] for _ in range(8)] == list("aabaaaba")
    assert [spread.order({"a": 0.0, "b": 0.0})[0] for _ in range(4)].count("a") == 2
    assert sorted(spread.order({"a": 1.0, "b": 1.0, "c": 1.0})) == ["a", "b", "c"]
    assert spread.order({}) == []


def test_a_pool_ends_when_none_is_left_with_what_says_most():
    pool = Pool("fake", [Lone(Fake("one", GatewayUnreachable("a"))), Lone(Fake("two", TokenRefused("b")))], 0.01, 1)
    assert isinstance(run(pool.run(lambda _: None)), TokenRefused)
