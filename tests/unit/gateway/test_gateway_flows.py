"""Flows through a real gateway on loopback."""

import asyncio
import hashlib
import os
import random
import socket
import struct
import time
from types import SimpleNamespace

import pytest
from vouching import Vouching

from htcondor_vpn.gateway.serving.destinations import PublicPolicy
from htcondor_vpn.gateway.trust.deny_list import DenyList
from htcondor_vpn.wire.tls import reset


async def read_all(stream):
    pieces = []
    while data := await stream.read():
        pieces.append(data)
    return b"".join(pieces)


async def end(stream):
    """Half-closes: the other direction goes on."""
    stream.notify_close()
    await asyncio.get_running_loop().sock_sendall(stream.sock, stream.outgoing.read())
    stream.sock.shutdown(socket.SHUT_WR)


async def eventually(condition, seconds=60.0):
    """Waits for what no event announces."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


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


async def send_in_turns(stream, data, piece=50_000):
    """Sends and takes back in turns, as a stream has one owner."""
    for start in range(0, len(data), piece):
        part = data[start : start + piece]
        await stream.write(part)
        back = b""
        while len(back) < len(part):
            back += await stream.read()
        assert back == part


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


async def test_failures_have_names_and_the_connection_stays(running, echo_port, flow_lines):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = listener.getsockname()[1]
    async with running() as gateway, echo_port() as port:
        client = await gateway.client()
        for target, status, error in [
            (f"127.0.0.1:{refusing}", 502, "connection_refused"),
            (f"127.0.0.9:{port}", 403, "destination_ip_prohibited"),
            ("203.0.113.1:80", 403, "destination_ip_prohibited"),
            ("no-such-host.invalid:80", 502, "dns_error"),
            (f"{'a' * 70}.example:80", 502, "dns_error"),
        ]:
            answer = await gateway.ask(client, "CONNECT", target)
            assert (answer.status, answer.headers["proxy-status"]) == (status, f"htcondor-vpn; error={error}")
        assert client.reusable
        assert (await gateway.ask(client, "GET", "/.well-known/htcondor-vpn")).status == 200
        assert (await gateway.ask(client, "CONNECT", f"127.0.0.1:{port}")).status == 200
        await client.stream.write(b"ping")
        assert await client.stream.read() == b"ping"
    assert sum("outcome=connection_refused" in line for line in flow_lines()) == 1


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.1", "0x7f.1",
     "2130706433", "0.0.0.0", "[::]", "169.254.169.254", "[::ffff:a9fe:a9fe]", "10.0.0.1", "[fd00::1]", "[ff02::1]"],
)  # fmt: skip
async def test_forbidden_destinations_however_they_are_written(running, echo_port, host):
    async with running(policy=PublicPolicy()) as gateway, echo_port() as port:
        answer = await gateway.ask(await gateway.client(), "CONNECT", f"{host}:{port}")
        assert (answer.status, answer.headers["proxy-status"]) == (
            403, "htcondor-vpn; error=destination_ip_prohibited",
        )  # fmt: skip


async def test_an_unroutable_destination(running):
    class Anywhere:
        def refusal(self, address, port):
            return None

    async with running(policy=Anywhere(), connect_seconds=0.5) as gateway:
        answer = await gateway.ask(await gateway.client(), "CONNECT", "255.255.255.255:80")
        assert (answer.status, answer.headers["proxy-status"]) == (
            502, "htcondor-vpn; error=destination_ip_unroutable",
        )  # fmt: skip


async def test_a_destination_that_does_not_answer(running):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)  # the queue is full now: further SYNs are not answered
            async with running(connect_seconds=0.5) as gateway:
                answer = await gateway.ask(await gateway.client(), "CONNECT", f"127.0.0.1:{address[1]}")
                assert (answer.status, answer.headers["proxy-status"]) == (
                    504, "htcondor-vpn; error=connection_timeout",
                )  # fmt: skip


async def test_the_next_address_of_a_name(running, monkeypatch, echo_port):
    """One address is forbidden, one refuses, one answers."""

    def several(*_, **__):
        return [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.9", "::1", "127.0.0.1")]

    async with running() as gateway, echo_port() as port:
        monkeypatch.setattr(socket, "getaddrinfo", several)
        client = await gateway.client()
        assert (await gateway.ask(client, "CONNECT", f"several.test:{port}")).status == 200


async def test_a_name_is_looked_up_once(running, monkeypatch, echo_port):
    """A name that changes its address between judgement and connection gains nothing."""
    answers = iter(["127.0.0.1", "127.0.0.9"])
    async with running() as gateway, echo_port() as port:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (next(answers), 0))])
        client = await gateway.client()
        assert (await gateway.ask(client, "CONNECT", f"rebind.test:{port}")).status == 200
        client = await gateway.client()
        assert (await gateway.ask(client, "CONNECT", f"rebind.test:{port}")).status == 403


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
        token = gateway.tokens.add("brief", lifetime_seconds=1)
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
