"""Flows through a real gateway on loopback."""

import asyncio
import hashlib
import os
import random
import socket

import pytest
from streams import end, eventually, read_all, send_in_turns

from htcondor_vpn.wire.tls import reset


async def test_bytes_arrive_both_ways(running, echo_port, flow_lines):
    sent = os.urandom(3_000_000)
    async with running() as gateway, echo_port() as port:
        stream = await gateway.flow(port)
        await send_in_turns(stream, sent)
        await end(stream)
        assert await read_all(stream) == b""
        await eventually(flow_lines)
    (line,) = flow_lines()
    assert f"pilot=alice to=127.0.0.1:{port} via=127.0.0.1 bytes_up={len(sent)} bytes_down={len(sent)} " in line
    assert line.endswith("outcome=closed")
    assert gateway.token not in line


async def test_the_pilot_ends_first(running, far_side):
    """Half-close: the far side answers when it has heard all."""

    async def digest(sock):
        loop, seen = asyncio.get_running_loop(), hashlib.sha256()
        while data := await loop.sock_recv(sock, 65536):
            seen.update(data)
        await loop.sock_sendall(sock, seen.digest())

    async with running() as gateway, far_side(digest) as port:
        stream = await gateway.flow(port)
        await stream.write(b"x" * 1_000_000)
        await end(stream)
        assert await read_all(stream) == hashlib.sha256(b"x" * 1_000_000).digest()


async def test_the_far_side_ends_first(running, far_side, flow_lines):
    heard = asyncio.get_running_loop().create_future()

    async def server(sock):
        loop, got = asyncio.get_running_loop(), b""
        await loop.sock_sendall(sock, b"hello")
        sock.shutdown(socket.SHUT_WR)
        while data := await loop.sock_recv(sock, 65536):
            got += data
        heard.set_result(got)

    async with running() as gateway, far_side(server) as port:
        stream = await gateway.flow(port)
        assert await read_all(stream) == b"hello"
        await stream.write(b"still there")
        await stream.close()
        assert await heard == b"still there"
        await eventually(flow_lines)
        assert "outcome=closed" in flow_lines()[0]


async def test_a_reset_by_the_far_side(running, far_side, flow_lines):
    async def server(sock):
        await asyncio.get_running_loop().sock_recv(sock, 1)
        reset(sock)

    async with running() as gateway, far_side(server) as port:
        stream = await gateway.flow(port)
        await stream.write(b"x")
        with pytest.raises(ConnectionResetError):
            await stream.read()
        await eventually(flow_lines)
        assert "outcome=reset" in flow_lines()[0]


@pytest.mark.parametrize("how", ["reset", "end without close_notify"])
async def test_a_cut_by_the_pilot(running, far_side, flow_lines, how):
    seen = asyncio.get_running_loop().create_future()

    async def server(sock):
        try:
            while await asyncio.get_running_loop().sock_recv(sock, 65536):
                pass
        except OSError as error:
            seen.set_result(type(error))
        else:
            seen.set_result(None)

    async with running() as gateway, far_side(server) as port:
        stream = await gateway.flow(port)
        await stream.write(b"x")
        if how == "reset":
            stream.abort()
        else:
            stream.sock.close()
        assert await seen is ConnectionResetError
        await eventually(flow_lines)
        assert "outcome=reset" in flow_lines()[0]


async def test_what_comes_right_behind_the_head(running, echo_port):
    async with running() as gateway, echo_port() as port:
        stream = await gateway.stream()
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer {gateway.token}\r\n\r\n"
        await stream.write(head.encode() + b"early" * 10)
        got = b""
        while len(got) < len("HTTP/1.1 200 OK\r\n\r\n") + 50:
            got += await stream.read()
        assert got == b"HTTP/1.1 200 OK\r\n\r\n" + b"early" * 10


async def test_a_client_of_http_1_0(running, echo_port):
    async with running() as gateway, echo_port() as port:
        stream = await gateway.stream()
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.0\r\nProxy-Authorization: Bearer {gateway.token}\r\n\r\n"
        await stream.write(head.encode())
        got = b""
        while b"\r\n\r\n" not in got:
            got += await stream.read()
        assert got.startswith(b"HTTP/1.1 200 ")
        await send_in_turns(stream, b"x" * 1000)


async def test_by_name_and_by_ipv6(running, echo_port, ipv6):
    async with running() as gateway, echo_port() as port:
        client = await gateway.client()
        assert (await gateway.ask(client, "CONNECT", f"localhost:{port}")).status == 200
        await client.stream.write(b"ping")
        assert await client.stream.read() == b"ping"
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            client = await gateway.client()
            answer = await gateway.ask(client, "CONNECT", f"[::1]:{listener.getsockname()[1]}")
            assert answer.status == 200


async def test_many_flows_at_once(running, echo_port, flow_lines):
    async def one(gateway, port, number):
        data = random.Random(number).randbytes(200_000)
        stream = await gateway.flow(port)
        await send_in_turns(stream, data)
        await stream.close()

    async with running() as gateway, echo_port() as port:
        await asyncio.gather(*(one(gateway, port, number) for number in range(200)))
        await eventually(lambda: len(flow_lines()) == 200)
        assert len(gateway.gateway.roster.flows) == 0
        await eventually(lambda: not gateway.gateway.roster.sessions)
    assert all("bytes_up=200000 bytes_down=200000" in line for line in flow_lines())


async def test_a_reader_that_stalls_stops_only_its_own_flow(running, far_side, echo_port):
    async def pour(sock):
        loop = asyncio.get_running_loop()
        while True:
            await loop.sock_sendall(sock, bytes(1 << 20))

    async with running() as gateway, far_side(pour) as source, echo_port() as port:
        stalled = await gateway.flow(source)
        assert await stalled.read()
        stream = await gateway.flow(port)
        await send_in_turns(stream, b"x" * 1_000_000)
