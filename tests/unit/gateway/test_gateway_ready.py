"""A pilot's connections in reserve and its TLS sessions, with a real gateway."""

import asyncio
import contextlib
import socket
from ipaddress import IPv4Address

import h11
import pytest

from htcondor_vpn.errors import GatewayUntrusted
from htcondor_vpn.tunnel.carriers import ready
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.wire.tls import TlsStream

LOOPBACK = IPv4Address("127.0.0.1")


async def eventually(condition, seconds=60.0):
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def pilot_of(running):
    pilot = GatewayConnections("127.0.0.1", running.port, running.trust, lambda: running.token)
    try:
        yield pilot
    finally:
        pilot.forget()
        await asyncio.gather(*pilot._ready._making, return_exceptions=True)


async def works(stream):
    await stream.write(b"hello")
    assert await stream.read() == b"hello"
    stream.abort()


async def test_a_flow_after_another_waits_for_no_handshake(running, echo_port, monkeypatch):
    async with running() as gateway, echo_port() as port, pilot_of(gateway) as pilot:
        await works((await pilot.open_flow(LOOPBACK, port))[0])
        await eventually(lambda: len(pilot._ready._ready) == ready.FEWEST)
        await eventually(lambda: not gateway.gateway.roster.flows)

        async def connect():
            raise AssertionError("a flow makes a connection of its own")

        monkeypatch.setattr(pilot, "connect", connect)  # the reserve goes on with the one that it was made with
        for _ in range(5):
            await works((await pilot.open_flow(LOOPBACK, port))[0])
            await eventually(lambda: pilot._ready._ready)


async def test_sessions_are_resumed_and_the_key_is_checked_all_the_same(running, echo_port):
    async with running() as gateway, echo_port() as port, pilot_of(gateway) as pilot:
        first, _ = await pilot.open_flow(LOOPBACK, port)
        assert not first.tls.session_reused
        second = (await pilot.connect()).stream
        assert second.tls.session_reused
        assert second.peer_certificate == first.peer_certificate
        for stream in (first, second):
            stream.abort()
        others = ("pin-sha256:" + "A" * 43 + "=",)
        pilot.trust._get_pins, pilot.trust._pins, pilot.trust._known = lambda: others, others, {}
        with pytest.raises(GatewayUntrusted):
            await pilot.connect()


async def test_a_gateway_that_has_forgotten_the_session_is_none_the_worse(running, echo_port):
    async with running() as gateway, echo_port() as port, pilot_of(gateway) as pilot:
        (await pilot.open_flow(LOOPBACK, port))[0].abort()
        assert pilot._session is not None
        session, _ = pilot._session
        async with running() as other:
            sock = await other.raw()
            stream = await TlsStream.client(sock, pilot.trust.context, None, session)
            assert not stream.tls.session_reused
            stream.abort()


async def test_a_burst_makes_more_stand_ready_but_not_without_end(running, echo_port):
    async with running() as gateway, echo_port() as port, pilot_of(gateway) as pilot:
        flows = await asyncio.gather(*(pilot.open_flow(LOOPBACK, port) for _ in range(40)))
        await eventually(lambda: not pilot._ready._making)
        assert ready.FEWEST < len(pilot._ready._ready) <= ready.MOST
        for stream, _ in flows:
            await works(stream)


async def test_what_nobody_wants_is_kept_for_a_while_and_let_go(running, echo_port, monkeypatch):
    monkeypatch.setattr(ready, "FRESH_SECONDS", 0.05)
    monkeypatch.setattr(ready, "KEPT_SECONDS", 4)
    async with running(head_seconds=2) as gateway, echo_port() as port, pilot_of(gateway) as pilot:
        (await pilot.open_flow(LOOPBACK, port))[0].abort()
        await eventually(lambda: len(pilot._ready._ready) == ready.FEWEST and not pilot._ready._making)
        asked = pilot._ready._ready[0]._connection
        await eventually(lambda: asked._h11.their_state is h11.DONE)
        await eventually(lambda: not (gateway.gateway.roster.sessions or pilot._ready._ready or pilot._ready._making))


async def test_what_the_gateway_ends_is_dropped_at_once(running, echo_port):
    async with pilot_of_a_gateway_that_ends(running, echo_port) as pilot:
        await eventually(lambda: not pilot._ready._ready and not pilot._ready._making)


@contextlib.asynccontextmanager
async def pilot_of_a_gateway_that_ends(running, echo_port):
    async with contextlib.AsyncExitStack() as exits:
        async with running() as gateway, echo_port() as port:
            pilot = await exits.enter_async_context(pilot_of(gateway))
            (await pilot.open_flow(LOOPBACK, port))[0].abort()
            await eventually(lambda: len(pilot._ready._ready) == ready.FEWEST)
        yield pilot


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"]
)
async def test_a_stale_one_is_no_reason_for_a_flow_to_fail(running, answer):
    """The gateway has given up on what stands ready, and we hear of it only when we ask."""
    loop = asyncio.get_running_loop()
    seen = []

    async def serve(listener, context):
        while True:
            sock, _ = await loop.sock_accept(listener)
            tasks.append(asyncio.ensure_future(answered(sock, context, len(tasks))))

    async def answered(sock, context, number):
        stream = await TlsStream.server(sock, context)
        with contextlib.suppress(ConnectionError):
            seen.append(await stream.read())
            await stream.write(answer if number == 1 else b"HTTP/1.1 200 OK\r\n\r\n")
        if number == 1:
            await stream.close()
        else:
            streams.append(stream)

    tasks, streams = [], []
    async with running() as gateway:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            serving = asyncio.ensure_future(serve(listener, gateway.credentials.server_context()))
            gateway.port = listener.getsockname()[1]
            async with pilot_of(gateway) as pilot:
                pilot._ready._wanted = 0
                flows = [await pilot.open_flow(LOOPBACK, 80)]
                pilot._ready._wanted = 1
                pilot._ready._refill()
                await eventually(lambda: pilot._ready._ready)
                pilot._ready._wanted = 0
                flows.append(await pilot.open_flow(LOOPBACK, 81))
                assert [b"127.0.0.1:80" in seen[0], b":81" in seen[1], b":81" in seen[2]] == [True] * 3
                for stream in [*streams, *(stream for stream, _ in flows)]:
                    stream.abort()
            serving.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
