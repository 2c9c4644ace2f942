"""CONNECT-UDP through a real gateway on loopback."""

import asyncio
import contextlib
import json
import os
import socket

import pytest

from htcondor_vpn.gateway.serving import datagrams
from htcondor_vpn.wire.capsules import encode
from htcondor_vpn.wire.datagrams import CapsulePipe

UPGRADE = [("Connection", "Upgrade"), ("Upgrade", "connect-udp"), ("Capsule-Protocol", "?1")]


def target(port, host="127.0.0.1"):
    return f"/.well-known/masque/udp/{host}/{port}/"


@contextlib.asynccontextmanager
async def udp_echo(host="127.0.0.1"):
    """A far side that sends each datagram back; yields its port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.setblocking(False)

        def readable():
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, peer = sock.recvfrom(65536)
                    sock.sendto(data, peer)

        loop = asyncio.get_running_loop()
        loop.add_reader(sock, readable)
        try:
            yield sock.getsockname()[1]
        finally:
            loop.remove_reader(sock)


class Client:
    """A pilot's side: what arrives is in `arrived`, None for an unreachable port."""

    def __init__(self, stream, early):
        self.arrived = asyncio.Queue()
        self.pipe = CapsulePipe(stream, early)
        self.pipe.start(self.arrived.put_nowait)

    async def echo(self, payload):
        assert self.pipe.send(payload)
        return await asyncio.wait_for(self.arrived.get(), 60)


@contextlib.asynccontextmanager
async def way(gateway, port, host="127.0.0.1"):
    connection = await gateway.client()
    answer = await gateway.ask(connection, "GET", target(port, host), headers=UPGRADE)
    assert answer.status == 101
    assert answer.headers["upgrade"] == "connect-udp"
    assert answer.headers["capsule-protocol"] == "?1"
    client = Client(connection.stream, connection.early_bytes)
    try:
        yield client
    finally:
        client.pipe.close()


async def eventually(condition, seconds=60.0):
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_datagrams_both_ways(running, flow_lines):
    sizes = (0, 1, 1400, 9000, 60000)
    async with running() as gateway, udp_echo() as port:
        async with way(gateway, port) as client:
            for size in sizes:
                payload = os.urandom(size)
                assert await client.echo(payload) == payload
        await eventually(flow_lines)
    (line,) = flow_lines()
    assert f"to=127.0.0.1:{port}/udp via=127.0.0.1 bytes_up={sum(sizes)} bytes_down={sum(sizes)} " in line
    assert line.endswith("outcome=closed")


async def test_ipv6_is_percent_encoded(running, ipv6):
    async with running() as gateway, udp_echo("::1") as port, way(gateway, port, "%3A%3A1") as client:
        assert await client.echo(b"six") == b"six"


async def test_a_name(running):
    async with running() as gateway, udp_echo() as port, way(gateway, port, "localhost") as client:
        assert await client.echo(b"named") in (b"named", None)  # where localhost is ::1 first nobody listens


async def test_unknown_capsules_are_skipped(running):
    async with running() as gateway, udp_echo() as port, way(gateway, port) as client:
        client.pipe._queue(encode(0x2E4D, bytes(100_000)))
        assert await client.echo(b"x") == b"x"


async def test_a_capsule_right_behind_the_answer_to_the_upgrade(running):
    """And one in two pieces, as a stream delivers them."""
    async with running() as gateway, udp_echo() as port, way(gateway, port) as client:
        capsule = b"\0\x04\0abc"
        client.pipe._queue(capsule[:3])
        client.pipe._flush()
        await asyncio.sleep(0.05)
        client.pipe._queue(capsule[3:])
        assert await asyncio.wait_for(client.arrived.get(), 60) == b"abc"


async def test_a_port_where_nobody_listens(running):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    async with running() as gateway, way(gateway, port) as client:
        assert await client.echo(b"x") is None
        assert await client.echo(b"x") is None


async def test_a_forbidden_destination(running, flow_lines):
    async with running() as gateway:
        answer = await gateway.ask(await gateway.client(), "GET", target(53, "127.0.0.9"), headers=UPGRADE)
        assert answer.status == 403
        assert "destination_ip_prohibited" in answer.headers["proxy-status"]
        await eventually(flow_lines)
    assert "outcome=destination_ip_prohibited" in flow_lines()[0]


async def test_the_connection_can_be_used_again_after_a_refusal(running):
    async with running() as gateway:
        client = await gateway.client()
        assert (await gateway.ask(client, "GET", target(53, "127.0.0.9"), headers=UPGRADE)).status == 403
        answer = await gateway.ask(client, "GET", "/.well-known/htcondor-vpn")
        assert json.loads(answer.body)["udp"] is True


async def test_without_a_good_token(running):
    async with running() as gateway, udp_echo() as port:
        answer = await gateway.ask(await gateway.client(), "GET", target(port), headers=UPGRADE, token="x" * 43)
        assert answer.status == 401


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (target(7), []),
        (target(7), UPGRADE[:1]),
        (target(7), UPGRADE[1:]),
        (target(7), [("Connection", "Upgrade"), ("Upgrade", "websocket")]),
        (target(7)[:-1], UPGRADE),
        (target(0), UPGRADE),
        (target(65536), UPGRADE),
        (target("x"), UPGRADE),
        (target(7, "a%2Fb"), UPGRADE),
        (target(7, "%00"), UPGRADE),
        (target(7, "fe80%3A%3A1%25eth0"), UPGRADE),
        (target(7) + "?x", UPGRADE),
        (target(7, "1%2C2"), UPGRADE),
        (target(7), [*UPGRADE, ("Content-Length", "1")]),
    ],
)
async def test_bad_requests(running, path, headers):
    async with running() as gateway:
        body = b"x" if ("Content-Length", "1") in headers else b""
        headers = [field for field in headers if field[0] != "Content-Length"]
        assert (await gateway.ask(await gateway.client(), "GET", path, body, headers)).status == 400


async def test_the_method_is_get(running):
    async with running() as gateway:
        assert (await gateway.ask(await gateway.client(), "POST", target(7), headers=UPGRADE)).status == 400


async def test_an_oversized_datagram_ends_it(running, flow_lines):
    async with running() as gateway, udp_echo() as port, way(gateway, port) as client:
        client.pipe._queue(encode(0, bytes(65529)))
        assert await client.pipe.ended(5)
        await eventually(flow_lines)
    assert "outcome=reset" in flow_lines()[0]


async def test_a_revoked_token_cuts_it(running, flow_lines):
    async with running() as gateway, udp_echo() as port, way(gateway, port) as client:
        assert await client.echo(b"x") == b"x"
        gateway.tokens.revoke("alice")
        assert await client.pipe.ended(5)
        assert client.pipe.broken
        await eventually(flow_lines)
    assert "outcome=credential_revoked" in flow_lines()[0]


async def test_an_idle_one_ends_cleanly(running, monkeypatch, flow_lines):
    monkeypatch.setattr(datagrams.relay_datagrams, "__defaults__", (0.2,))
    async with running() as gateway, udp_echo() as port, way(gateway, port) as client:
        assert await client.echo(b"x") == b"x"
        assert await client.pipe.ended(5)
        assert not client.pipe.broken
        await eventually(flow_lines)
    assert "outcome=closed" in flow_lines()[0]


async def test_a_peer_that_reads_nothing_costs_no_memory(running):
    """The far side floods; what the pilot does not read is dropped at the gateway."""
    async with running() as gateway, udp_echo() as port:
        connection = await gateway.client()
        assert (await gateway.ask(connection, "GET", target(port), headers=UPGRADE)).status == 101
        stream, capsule = connection.stream, b"\0\x80\0\xea\x61\0" + bytes(60000)
        for _ in range(300):  # 18 MB, none of which is read back
            await stream.write(capsule)
        async with way(gateway, port) as client:  # and nobody else is kept waiting
            assert await client.echo(b"x") == b"x"
