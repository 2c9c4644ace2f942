"""What ends flows, or lets none begin: credentials, stops and limits, with a real gateway on loopback."""

import asyncio
import socket
import struct
import time
from types import SimpleNamespace

import pytest
from streams import eventually, send_in_turns
from vouching import Vouching

from htcondor_vpn.gateway.trust.deny_list import DenyList


async def test_a_revoked_token_cuts_its_flows_and_no_others(running, echo_port, flow_lines):
    async with running() as gateway, echo_port() as port:
        other = gateway.tokens.add("bob")
        alices, bobs = await gateway.flow(port), await gateway.flow(port, token=other)
        idle = await gateway.client()
        assert (await gateway.ask(idle, "GET", "/.well-known/htcondor-vpn")).status == 200
        loop = asyncio.get_running_loop()
        started = loop.time()
        gateway.tokens.revoke("alice")
        for stream in (alices, idle.stream):
            with pytest.raises(ConnectionResetError):
                await stream.read()
        assert loop.time() - started < 5
        await send_in_turns(bobs, b"x" * 100_000)
        await eventually(flow_lines)
    assert "pilot=alice" in flow_lines()[0]
    assert "outcome=credential_revoked" in flow_lines()[0]


async def test_an_expired_token_cuts_its_flows(running, echo_port):
    async with running() as gateway, echo_port() as port:
        token = gateway.tokens.add("brief", lifetime_seconds=4)
        stream = await gateway.flow(port, token=token)
        with pytest.raises(ConnectionResetError):
            await stream.read()
        assert (await gateway.ask(await gateway.client(), "CONNECT", f"127.0.0.1:{port}", token=token)).status == 407


async def test_a_stop_lets_flows_go_on(running, echo_port):
    async with running() as gateway, echo_port() as port:
        stream = await gateway.flow(port)
        idle = await gateway.client()
        assert (await gateway.ask(idle, "GET", "/.well-known/htcondor-vpn")).status == 200
        gateway.gateway.stop()
        assert await idle.stream.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await gateway.raw()
        await send_in_turns(stream, b"x" * 100_000)
        assert not gateway.serving.done()
        await stream.close()
        await gateway.serving


async def test_a_second_stop_does_not(running, echo_port, flow_lines):
    async with running() as gateway, echo_port() as port:
        stream = await gateway.flow(port)
        gateway.gateway.stop()
        gateway.gateway.stop()
        with pytest.raises(ConnectionResetError):
            await stream.read()
        await gateway.serving
    assert "outcome=gateway_ended" in flow_lines()[0]


async def test_the_grace_period_ends(running, echo_port):
    async with running(grace_seconds=0.3) as gateway, echo_port() as port:
        stream = await gateway.flow(port)
        gateway.gateway.stop()
        await gateway.serving
        with pytest.raises(ConnectionResetError):
            await stream.read()


async def test_a_connection_limit_for_each_token(running, echo_port):
    async with running(connections_per_token=2) as gateway, echo_port() as port:
        await gateway.flow(port)
        second = await gateway.flow(port)
        client = await gateway.client()
        answer = await gateway.ask(client, "CONNECT", f"127.0.0.1:{port}")
        assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        await gateway.flow(port, token=gateway.tokens.add("bob"))
        second.abort()
        await eventually(lambda: len(gateway.gateway.roster.sessions) == 2)
        await gateway.flow(port)


async def test_a_connection_limit_for_all(running, echo_port):
    async with running(connections=2) as gateway, echo_port() as port:
        kept = await gateway.client()
        assert (await gateway.ask(kept, "GET", "/.well-known/htcondor-vpn")).status == 200
        await gateway.flow(port)
        client = await gateway.client()
        answer = await gateway.ask(client, "CONNECT", f"127.0.0.1:{port}")
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert (await gateway.ask(kept, "GET", "/.well-known/htcondor-vpn")).status == 200


async def test_beyond_all_limits_connections_wait(running, monkeypatch):
    async with running(connections=1) as gateway:
        hoarded = [await gateway.raw() for _ in range(65)]
        await eventually(lambda: len(gateway.gateway.roster.sessions) == 65)
        late = asyncio.ensure_future(gateway.client())
        await asyncio.sleep(0.2)
        assert not late.done()
        for sock in hoarded:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        client = await late
        assert (await gateway.ask(client, "GET", "/.well-known/htcondor-vpn")).status == 200


async def test_a_session_reports_its_own_end_of_descriptors(running, monkeypatch):
    async with running() as gateway:
        client = await gateway.client()

        def none_left(*_):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("htcondor_vpn.gateway.serving.connector.socket.socket", none_left)
        answer = await gateway.ask(client, "CONNECT", "127.0.0.1:80")
        assert (answer.status, answer.headers["proxy-status"]) == (503, "htcondor-vpn; error=proxy_internal_error")


async def test_a_denied_pilots_flows_are_cut(running, echo_port, flow_lines):
    async with running(authenticators=[Vouching()]) as gateway, echo_port() as port:
        bob = await gateway.flow(port, token="other.bob")
        carol = await gateway.flow(port, token="other.carol")
        with DenyList(gateway.folder) as command:
            command.add("mark:bob")
        with pytest.raises(ConnectionResetError):
            await bob.read()
        await carol.write(b"still here")
        assert await carol.read() == b"still here"
        client = await gateway.client()
        assert (await gateway.ask(client, "GET", "/.well-known/htcondor-vpn", token="other.bob")).status == 401
        await eventually(flow_lines)
    assert "pilot=other:bob" in flow_lines()[0]
    assert "outcome=credential_revoked" in flow_lines()[0]


async def test_a_flow_ends_with_its_pilots_last_credential(running, echo_port, flow_lines, monkeypatch):
    async with running(authenticators=[Vouching()]) as gateway, echo_port() as port:
        now = time.time()
        ending = await gateway.flow(port, token=f"other.bob.{now + 100}")
        renewed = await gateway.flow(port, token=f"other.carol.{now + 100}")
        client = await gateway.client()
        target = "/.well-known/htcondor-vpn"
        assert (await gateway.ask(client, "GET", target, token=f"other.carol.{now + 600}")).status == 200
        monkeypatch.setattr("htcondor_vpn.gateway.trust.gatekeeper.time", SimpleNamespace(time=lambda: now + 101))
        with pytest.raises(ConnectionResetError):
            await ending.read()
        await renewed.write(b"still here")
        assert await renewed.read() == b"still here"
        await eventually(flow_lines)
    assert "outcome=credential_expired" in flow_lines()[0]
