"""Carriers whose addresses a name tells."""

import asyncio
import socket

import pytest
from fake_carriers import Changing, Fake, Running, healthy, run

from htcondor_vpn.errors import GatewayNameError, GatewayUnreachable
from htcondor_vpn.tunnel import followed
from htcondor_vpn.tunnel.members import Named
from htcondor_vpn.tunnel.pool import Pool


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
