"""A gateway that drains: flows go on, none begins, probes say so, it ends with the last flow; and how it accepts."""

import asyncio
import contextlib
import json
import socket

import pytest

from htcondor_vpn.wire.http import HttpConnection
from htcondor_vpn.wire.tls import TlsStream

STATE = "/.well-known/htcondor-vpn"


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def standing(gateway):
    """What a probe on a connection of its own is told."""
    answer = await gateway.ask(await gateway.client(), "GET", STATE)
    assert answer.status == 200
    return json.loads(answer.body)


async def test_flows_go_on_and_none_begins(running, echo_port):
    async with running() as gateway, echo_port() as port:
        stream = await gateway.flow(port)
        assert not (await standing(gateway))["draining"]
        gateway.gateway.drain()
        assert (await standing(gateway))["draining"]
        answer = await gateway.ask(await gateway.client(), "CONNECT", f"127.0.0.1:{port}")
        assert answer.status == 503
        assert answer.headers["proxy-status"] == 'htcondor-vpn; error=proxy_internal_error; details="draining"'
        await stream.write(b"still here")
        assert await stream.read() == b"still here"
        assert not gateway.serving.done()
        await stream.close()
        await gateway.serving


async def test_idle_connections_end_in_order(running, echo_port):
    async with running() as gateway, echo_port() as port:
        stream, probing = await gateway.flow(port), await gateway.client()
        assert (await gateway.ask(probing, "GET", STATE)).status == 200
        gateway.gateway.drain()
        assert await probing.stream.read() == b""
        await stream.close()


@pytest.mark.parametrize("order", ["drain", "retire"])
@pytest.mark.parametrize("before", [0, 10])
async def test_who_has_connected_before_is_heard(running, order, before):
    """Also by a process that ends for want of flows, and after those for whose handshakes it has no time yet."""
    async with running(grace_seconds=0, handshakes_per_second=1) as gateway:
        with contextlib.ExitStack() as exits:
            for _ in range(before):
                exits.enter_context(await gateway.raw())
            sock = await gateway.raw()
            await until(lambda: len(gateway.gateway.roster.sessions) == before + 1)
            getattr(gateway.gateway, order)()
            await until(lambda: gateway.listener.fileno() < 0)
            stream = await TlsStream.client(sock, gateway.trust.context, None)
            exits.callback(stream.abort)
            answer = await gateway.ask(HttpConnection(stream), "CONNECT", "127.0.0.9:1")
            assert answer.status == (503 if order == "drain" else 403)


@pytest.mark.parametrize("turns", range(8))
async def test_who_connects_while_it_leaves_is_not_lost(running, turns):
    """It is either served, or waits in the queue of the listening socket, which others of this gateway's have too."""
    async with running() as gateway:
        await standing(gateway)  # it accepts by now
        with gateway.listener.dup() as another:
            gateway.gateway.retire()
            for _ in range(turns):
                await asyncio.sleep(0)
            sock = socket.create_connection(("127.0.0.1", gateway.port))
            await until(lambda: gateway.listener.fileno() < 0)
            try:
                another.accept()[0].close()
                sock.close()
            except BlockingIOError:
                sock.setblocking(False)
                stream = await TlsStream.client(sock, gateway.trust.context, None)
                assert (await gateway.ask(HttpConnection(stream), "GET", STATE)).status == 200
                stream.abort()


async def test_without_flows_it_ends_though_somebody_asks_for_nothing(running):
    async with running(head_seconds=1) as gateway:
        await gateway.client()
        gateway.gateway.drain()
        await asyncio.wait_for(gateway.serving, 60)


async def test_a_drain_may_be_cut_short(running, echo_port):
    async with running(grace_seconds=0) as gateway, echo_port() as port:
        await gateway.flow(port)
        gateway.gateway.drain()
        gateway.gateway.stop()
        await asyncio.wait_for(gateway.serving, 60)


async def test_the_load_is_that_of_the_limit(running, echo_port):
    async with running(connections=4) as gateway, echo_port() as port:
        await gateway.flow(port)
        told = await standing(gateway)
        assert (told["flows"], told["load"]) == (1, 0.5)


async def test_a_burst_is_left_to_other_processes_too(running):
    """One connection a turn is accepted, so that another process of the gateway finds some in the queue."""
    async with running() as gateway:
        await standing(gateway)  # it accepts by now
        before = len(gateway.gateway.roster.sessions)
        with contextlib.ExitStack() as exits:
            for _ in range(30):
                exits.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(gateway.gateway.roster.sessions) - before <= 10
