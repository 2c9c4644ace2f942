"""One host that floods a gateway is kept within bounds, and its neighbours are not punished for it."""

import asyncio
import time

import pytest
from streams import eventually

from htcondor_vpn.gateway.trust.strangers import _HANDSHAKES_AT_ONCE, Strangers, source_of

TARGET = "/.well-known/htcondor-vpn"


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_an_address_has_so_many_strangers():
    strangers = Strangers(per_address=3, total=100, rate=10)
    visits = [strangers.visit("192.0.2.1") for _ in range(3)]
    assert all(visits)
    assert strangers.visit("192.0.2.1") is None
    assert strangers.visit("192.0.2.2")
    visits[0].end()
    visits[0].end()
    assert strangers.visit("192.0.2.1")
    assert strangers.visit("192.0.2.1") is None


def test_an_address_of_many_pilots_counts_for_more():
    strangers = Strangers(per_address=3, total=100, rate=10)
    pilots = []
    for _ in range(20):
        pilots.append(strangers.visit("192.0.2.1"))
        pilots[-1].authenticated()
        pilots[-1].authenticated()
    visits = [strangers.visit("192.0.2.1") for _ in range(10)]
    assert sum(visit is not None for visit in visits) == 9
    for pilot in pilots:
        pilot.end()
    assert strangers.visit("192.0.2.1") is None


def test_when_all_addresses_together_are_too_many_those_of_pilots_go_on():
    strangers = Strangers(per_address=1000, total=10, rate=10)
    strangers.visit("192.0.2.1").authenticated()
    assert all(strangers.visit(f"198.51.100.{number}") for number in range(10))
    assert strangers.visit("203.0.113.1") is None
    assert strangers.visit("192.0.2.1")


def test_an_ipv6_host_has_a_whole_network_of_addresses():
    assert source_of("2001:db8::1") == source_of("2001:db8::ffff:1%eth0") != source_of("2001:db8:0:1::1")
    assert source_of("192.0.2.1") != source_of("192.0.2.2")


def test_handshakes_wait_when_they_come_too_fast(clock):
    strangers = Strangers(per_address=1000, total=1000, rate=10)
    source = strangers.visit("192.0.2.1")._source
    assert [strangers.reserve(source) for _ in range(100)] == [0.0] * 100
    assert [round(strangers.reserve(source), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    clock.now += 0.3
    assert round(strangers.reserve(source), 3) == 0.1
    clock.now += 1000
    assert [strangers.reserve(source) for _ in range(100)] == [0.0] * 100
    assert strangers.reserve(source) > 0


def test_good_pilots_do_not_wait_however_fast_they_come(clock):
    strangers = Strangers(per_address=1000, total=1000, rate=10)
    for _ in range(1000):
        visit = strangers.visit("192.0.2.1")
        assert strangers.reserve(visit._source) == 0.0
        visit.authenticated()
        visit.end()


def test_refusals_are_dear(clock):
    strangers = Strangers(per_address=1000, total=1000, rate=10)
    free = 0
    while not strangers.reserve(strangers.visit("192.0.2.1")._source):
        strangers.visit("192.0.2.1").refused()
        free += 1
    assert free == 17


def test_addresses_are_forgotten(clock, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.trust.strangers._MAX_IDLE_SOURCES", 10)
    strangers = Strangers(per_address=1000, total=1000, rate=10)
    staying = strangers.visit("192.0.2.1")
    for number in range(100):
        clock.now += 20
        visit = strangers.visit(f"198.51.100.{number}")
        strangers.reserve(visit._source)
        visit.end()
    assert len(strangers._sources) <= 10
    assert "192.0.2.1" in strangers._sources
    staying.end()


async def test_handshakes_at_once(monkeypatch):
    strangers = Strangers(per_address=1000, total=1000, rate=1e6)
    shaking = [strangers.visit("192.0.2.1") for _ in range(_HANDSHAKES_AT_ONCE)]
    for visit in shaking:
        await visit.turn()
    assert shaking[-1].patience_seconds(10) == 3
    late = strangers.visit("192.0.2.1")
    turn = asyncio.ensure_future(late.turn())
    await asyncio.wait_for(strangers.visit("192.0.2.2").turn(), 10)
    assert not turn.done()
    shaking[0].greeted()
    shaking[0].greeted()
    await asyncio.wait_for(turn, 10)
    abandoned = asyncio.ensure_future(strangers.visit("192.0.2.1").turn())
    await asyncio.sleep(0)
    abandoned.cancel()
    await asyncio.gather(abandoned, return_exceptions=True)
    for visit in [*shaking, late]:
        visit.end()
    assert shaking[-1].patience_seconds(10) == 10
    for _ in range(_HANDSHAKES_AT_ONCE):
        await asyncio.wait_for(strangers.visit("192.0.2.1").turn(), 10)


async def hoard(gateway, count):
    """Connections that say nothing; those that were turned away are left out."""
    loop = asyncio.get_running_loop()
    strangers, seen = gateway.gateway._strangers, []
    visit = strangers.visit
    strangers.visit = lambda address: (visit(address), seen.append(address))[0]
    socks = [await gateway.raw() for _ in range(count)]
    await eventually(lambda: len(seen) == count)
    kept = []
    for sock in socks:
        try:
            sock.send(b"\x16")
            await asyncio.wait_for(loop.sock_recv(sock, 1), 0.001)
        except asyncio.TimeoutError:
            kept.append(sock)
        except OSError:
            sock.close()
    return kept


async def test_silent_connections_are_bounded_and_others_are_served(running, echo_port, caplog, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.trust.strangers._PRESSED_SECONDS", 60.0)  # they shall not go meanwhile
    async with running(strangers_per_address=50, head_seconds=8) as gateway, echo_port() as port:
        flow = await gateway.flow(port)
        hoarded = await hoard(gateway, 200)
        assert len(hoarded) <= 56
        with pytest.raises(ConnectionError):
            await gateway.client()
        await flow.write(b"still here")
        assert await flow.read() == b"still here"
        assert caplog.text.count("are unauthenticated") <= 1
        await asyncio.wait_for(asyncio.gather(*map(ended, hoarded)), 60)
        assert (await gateway.ask(await gateway.client(), "GET", TARGET)).status == 200


async def ended(sock):
    """Waits for the gateway to lose its patience."""
    try:
        while await asyncio.get_running_loop().sock_recv(sock, 4096):
            pass
    except OSError:
        pass
    finally:
        sock.close()


async def test_guessing_is_slow(running):
    async with running(handshakes_per_second=5) as gateway:
        guesses = []

        async def go_on():
            while True:
                await guess(gateway)
                guesses.append(1)

        begin = time.monotonic()
        tasks = [asyncio.ensure_future(go_on()) for _ in range(20)]
        await asyncio.wait(tasks, timeout=3)
        while len(guesses) < 8:  # a machine that is held up lets nobody guess either
            await asyncio.wait(tasks, timeout=0.1)
        count, seconds = len(guesses), time.monotonic() - begin
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert count <= 20 + 10 * seconds


async def guess(gateway):
    client = await gateway.client()
    try:
        assert (await gateway.ask(client, "GET", TARGET, token="guess")).status == 401
    finally:
        client.stream.abort()


async def test_a_burst_of_good_pilots_is_not_slow(running):
    async with running(handshakes_per_second=5, strangers_per_address=1000) as gateway:
        for _ in range(100):
            client = await gateway.client()
            assert (await gateway.ask(client, "GET", TARGET)).status == 200
            client.stream.abort()
        source = gateway.gateway._strangers._sources["127.0.0.1"]
        assert source.balance > 40
