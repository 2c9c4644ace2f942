"""Echo requests on a pilot's behalf: what is answered, refused, and too much. The ICMP socket is stood in for."""

import asyncio
import errno

import pytest

from htcondor_vpn.gateway.operation.allowances import Allowances
from htcondor_vpn.gateway.operation.seats import Seats
from htcondor_vpn.gateway.serving import connector, echoes

TARGET = "/.well-known/htcondor-vpn/echo"


@pytest.fixture
def sent(monkeypatch):
    """What was pinged; 127.0.0.5 is unreachable, 127.0.0.6 silent."""
    found = []

    async def ping(endpoint, payload):
        host = endpoint[1][0]
        found.append((host, payload))
        if host == "127.0.0.5":
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        if host == "127.0.0.6":
            await asyncio.sleep(60)
        return payload[::-1]

    monkeypatch.setattr(connector, "ping", ping)
    return found


async def ask(gateway, address, payload=b"abc", client=None, token=None):
    asked = client or await gateway.client()
    return await gateway.ask(asked, "POST", f"{TARGET}?address={address}", payload, token=token)


async def test_what_came_back_is_passed_on(running, sent, caplog):
    caplog.set_level("INFO")
    async with running() as gateway:
        client = await gateway.client()
        assert (await ask(gateway, "127.0.0.2", client=client)).body == b"cba"
        assert (await ask(gateway, "127.0.0.2", bytes(60000), client=client)).body == bytes(60000)
        assert (await ask(gateway, "127.0.0.2", b"", client=client)).body == b""
    assert [payload for _, payload in sent] == [b"abc", bytes(60000), b""]
    assert "echo pilot=alice to=127.0.0.2 bytes=3" in caplog.text


@pytest.mark.parametrize(
    ("address", "status", "error"),
    [
        ("127.0.0.5", 502, "destination_ip_unroutable"),
        ("127.0.0.6", 504, "connection_timeout"),
        ("127.0.0.9", 403, "destination_ip_prohibited"),
        ("::ffff:127.0.0.9", 403, "destination_ip_prohibited"),
    ],
)
async def test_what_is_told_instead(running, sent, address, status, error):
    async with running(connect_seconds=0.2) as gateway:
        answer = await ask(gateway, address)
        assert (answer.status, answer.headers["proxy-status"]) == (status, f"htcondor-vpn; error={error}")
    assert "127.0.0.9" not in dict(sent)


@pytest.mark.parametrize(
    ("address", "size", "status"), [("", 1, 400), ("example.org", 1, 400), ("127.0.0.2", 65508, 413)]
)
async def test_requests_that_make_no_sense(running, sent, address, size, status):
    async with running() as gateway:
        assert (await ask(gateway, address, bytes(size))).status == status
    assert sent == []


async def test_only_pilots_ask_and_only_by_post(running, sent):
    async with running() as gateway:
        assert (await ask(gateway, "127.0.0.2", token="x" * 43)).status == 401
        assert (await gateway.ask(await gateway.client(), "GET", f"{TARGET}?address=127.0.0.2")).status == 405
    assert sent == []


async def test_one_pilots_flood_is_its_own(running, sent, monkeypatch):
    monkeypatch.setattr(echoes, "BURST", 5)
    monkeypatch.setattr(echoes, "PER_SECOND", 1e-6)
    async with running() as gateway:
        client, bob = await gateway.client(), gateway.tokens.add("bob")
        statuses = [(await ask(gateway, "127.0.0.2", client=client)).status for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        assert (await ask(gateway, "127.0.0.2", token=bob)).status == 200
    assert len(sent) == 6


async def test_the_limits_are_those_of_all_processes_together(running, sent, monkeypatch):
    monkeypatch.setattr(echoes, "BURST", 5)
    monkeypatch.setattr(echoes, "PER_SECOND", 1e-6)
    monkeypatch.setattr(echoes, "MAX_UNANSWERED", 1)
    shared = {"allowances": Allowances(), "seats": Seats()}
    async with running(**shared) as one, running(**shared, column=1, connect_seconds=20) as other:
        clients = await one.client(), await other.client()
        statuses = [(await ask(one, "127.0.0.2", client=clients[0])).status for _ in range(3)]
        statuses += [(await ask(other, "127.0.0.2", client=clients[1])).status for _ in range(3)]
        assert statuses == [200] * 5 + [429]
        sent.clear()
        waiting = asyncio.ensure_future(ask(other, "127.0.0.6", token=other.tokens.add("bob")))
        while not sent:
            await asyncio.sleep(0.01)
        assert (await ask(one, "127.0.0.2", token=one.tokens.add("carol"))).status == 503
        shared["seats"].clear(1)  # as is done when that process has died
        assert (await ask(one, "127.0.0.2", token=one.tokens.add("dave"))).status == 200
        shared["seats"].bind(1, echoes._UNANSWERED, 1)
        waiting.cancel()


async def test_a_long_one_is_several(running, sent, monkeypatch):
    monkeypatch.setattr(echoes, "PER_SECOND", 1e-6)
    async with running() as gateway:
        client = await gateway.client()
        statuses = [(await ask(gateway, "127.0.0.2", bytes(65507), client=client)).status for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_the_unanswered_are_bounded(running, sent, monkeypatch):
    monkeypatch.setattr(echoes, "MAX_UNANSWERED", 1)
    async with running(connect_seconds=20) as gateway:
        waiting = asyncio.ensure_future(ask(gateway, "127.0.0.6"))
        while not sent:
            await asyncio.sleep(0.01)
        assert (await ask(gateway, "127.0.0.2")).status == 503
        waiting.cancel()


async def test_the_unanswered_ones_of_one_pilot_leave_room_for_others(running, sent, monkeypatch):
    monkeypatch.setattr(echoes, "MAX_UNANSWERED", 4)
    monkeypatch.setattr(echoes, "MAX_OF_ONE", 2)
    async with running(connect_seconds=20) as gateway:
        waiting = [asyncio.ensure_future(ask(gateway, "127.0.0.6")) for _ in range(2)]
        while len(sent) < 2:
            await asyncio.sleep(0.01)
        assert (await ask(gateway, "127.0.0.2")).status == 429
        assert (await ask(gateway, "127.0.0.2", token=gateway.tokens.add("bob"))).status == 200
        for task in waiting:
            task.cancel()
