"""Spreading over carriers, leaving and taking them back, and choosing among pools, with carriers that are told."""

import asyncio
import socket
from ipaddress import ip_address

import pytest

from htcondor_vpn.errors import GatewayNameError, GatewayUnreachable, GatewayUntrusted, TokenRefused, VpnError
from htcondor_vpn.tunnel import followed
from htcondor_vpn.tunnel.carrier import Answer
from htcondor_vpn.tunnel.engine import CarrierReport
from htcondor_vpn.tunnel.ladder import Ladder
from htcondor_vpn.tunnel.members import Lone, Named
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.tunnel.spread import Spread

V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")


class Fake:
    """A carrier whose probes say what `state` is: families, or an error."""

    start_seconds = 0.0

    def __init__(self, name, state=("ipv4", "ipv6"), **told):
        self.name, self.state, self.told, self.flows = name, state, told, 0
        self.unreachable = False
        self.silent = self.forgotten = False

    async def open_flow(self, address, port):
        if self.unreachable:
            raise GatewayUnreachable(f"{self.name} is not there")
        if self.silent:
            await asyncio.Event().wait()
        self.flows += 1
        return self.name, b""

    async def ask_dns(self, query):
        return query

    async def probe(self):
        if isinstance(self.state, VpnError):
            raise self.state
        self.forgotten = False
        return Answer(self.state, 1.0, **self.told)

    async def lost(self):
        await asyncio.Event().wait()

    def forget(self):
        self.forgotten = True


class Changing:
    """A member whose carriers are what `now` says, or the error that it is."""

    name, weight = "name:1", 1.0

    def __init__(self, *now):
        self.now = list(now)

    async def look_up(self):
        if isinstance(self.now, VpnError):
            raise self.now
        return list(self.now)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


class Running:
    """A pool that runs; `until` waits for something to become true after one of its changes."""

    def __init__(self, *carriers):
        members = [carrier if hasattr(carrier, "look_up") else Lone(carrier) for carrier in carriers]
        self.pool = Pool("fake", members, 0.01, 1)
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


@pytest.fixture
def often(monkeypatch):
    """Names are looked up all the time."""
    monkeypatch.setattr(followed, "LOOK_UP_SECONDS", 0.02)
    monkeypatch.setattr(followed, "LOOK_UP_AGAIN_SECONDS", 0.02)


def test_addresses_come_and_go(often):
    async def body():
        one, two, three = Fake("one"), Fake("two"), Fake("three")
        name = Changing(one, two)
        async with Running(name) as running:
            await running.until(lambda: healthy(running.pool) == ["one", "two"])
            assert not one.forgotten
            name.now = [two, three]
            await running.until(lambda: healthy(running.pool) == ["two", "three"])
            assert (one.forgotten, two.forgotten) == (True, False)  # what is kept for new flows; old ones go on
            name.now = GatewayUnreachable("no name server answers")
            for _ in range(5):
                running.changed.clear()
                await running.changed.wait()
            assert healthy(running.pool) == ["two", "three"]
            name.now = [one]
            await running.until(lambda: healthy(running.pool) == ["one"])

    run(body())


def test_one_that_is_lost_has_its_name_looked_up_at_once():
    async def body():
        one, two = Fake("one"), Fake("two")
        name = Changing(one)
        async with Running(name, Fake("other")) as running:
            await running.until(lambda: healthy(running.pool) == ["one", "other"])
            name.now = [two]
            one.state = GatewayUnreachable("gone")
            await running.until(lambda: healthy(running.pool) == ["two", "other"])

    run(body())


def test_a_name_that_is_not_known_yet(often):
    async def body():
        name = Changing()
        name.now = GatewayUnreachable("no such name")
        async with Running(name, Fake("other")) as running:
            await running.until(lambda: healthy(running.pool) == ["other"])
            name.now = [Fake("one")]
            await running.until(lambda: healthy(running.pool) == ["one", "other"])

    run(body())


def test_a_name_that_nobody_knows_ends_a_pool():
    name = Changing()
    name.now = GatewayUnreachable("no such name")
    assert "no such name" in str(run(Pool("fake", [name], 0.01, 1).run(lambda _: None)))


def test_each_address_of_a_name_is_a_carrier(monkeypatch):
    answers = [["192.0.2.2", "192.0.2.1", "192.0.2.2"], ["192.0.2.1", "192.0.2.2", "192.0.2.3"], ["192.0.2.3"]]

    async def body():
        async def getaddrinfo(host, port, **_):
            assert host == "gw.example"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        name = Named("gw.example", 443, "KNOB", lambda endpoint: Fake(endpoint[1][0]))
        first, second, third = [await name.look_up() for _ in range(3)]
        assert [carrier.name for carrier in first] == ["192.0.2.2", "192.0.2.1"]
        assert second[:2] == first
        assert [carrier.name for carrier in second] == ["192.0.2.2", "192.0.2.1", "192.0.2.3"]
        assert third == second[2:]

    run(body())


def test_a_name_that_does_not_resolve(monkeypatch):
    async def body():
        async def getaddrinfo(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        await Named("gw.example", 443, "KNOB", Fake).look_up()

    with pytest.raises(GatewayNameError, match="gw.example does not resolve: Name or service not known"):
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
    pools = [Pool(name, [Lone(carrier)], 0.01, 1) for name, carrier in
             (("a", Fake("x", GatewayUnreachable("no way"))), ("b", Fake("y")), ("c", Fake("z")))]  # fmt: skip
    said = run(climbed(pools, lambda what: isinstance(what, Pool)))
    assert said[-1].engine == "b"
    assert "a: no way" in str(said[0])


def test_what_may_mend_is_no_final_refusal():
    pools = [Pool("a", [Lone(Fake("x", TokenRefused("bad token")))], 0.01, 1),
             Pool("b", [Lone(Fake("y", GatewayUnreachable("no way")))], 0.01, 1)]  # fmt: skip
    said = run(climbed(pools, lambda what: "no way" in str(what)))
    assert type(said[-1]) is GatewayUnreachable
    assert "a: bad token; b: no way" in str(said[-1])
