"""The relay carries bytes, half-closes and resets faithfully: application - relay - TLS - relay - server."""

import asyncio
import contextlib
import hashlib
import os
import socket
import struct

import pytest

from htcondor_vpn.wire import relay as relaying
from htcondor_vpn.wire.relay import Traffic, relay
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust, pin_of

DEADLINE_SECONDS = 60


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, DEADLINE_SECONDS))


class Flow:
    """`application` and `server` are the plain ends of a flow through two relays."""

    def __init__(self, context, certificate):
        self.context, self.certificate = context, certificate
        self.traffic = Traffic()

    async def __aenter__(self):
        self.application, near = await tcp_pair()
        tunnel_client, tunnel_server = await tcp_pair()
        far, self.server = await tcp_pair()
        trust = Trust(ca_file=self.certificate)
        near_tls, far_tls = await asyncio.gather(
            TlsStream.client(tunnel_client, trust.context, "gateway.test"),
            TlsStream.server(tunnel_server, self.context),
        )
        self.near = asyncio.create_task(relay(near_tls, near, traffic=self.traffic))
        self.far = asyncio.create_task(relay(far_tls, far))
        return self

    async def __aexit__(self, *exception):
        for task in (self.near, self.far):
            task.cancel()
        for task in (self.near, self.far):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.application.close()
        self.server.close()


async def tcp_pair():
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        one = socket.socket()
        one.setblocking(False)
        (other, _), _ = await asyncio.gather(loop.sock_accept(listener), loop.sock_connect(one, listener.getsockname()))
    other.setblocking(False)
    return one, other


async def receive_all(sock):
    loop, parts = asyncio.get_running_loop(), []
    while data := await loop.sock_recv(sock, 1 << 20):
        parts.append(data)
    return b"".join(parts)


@pytest.fixture
def flow(server_context, certificate):
    return Flow(server_context, certificate)


def test_large_data_both_ways_at_once(flow):
    async def body():
        loop = asyncio.get_running_loop()
        up, down = os.urandom(9_000_001), os.urandom(7_000_003)
        async with flow:

            async def send(sock, data):
                await loop.sock_sendall(sock, data)
                sock.shutdown(socket.SHUT_WR)

            got_up, got_down, _, _ = await asyncio.gather(
                receive_all(flow.server),
                receive_all(flow.application),
                send(flow.application, up),
                send(flow.server, down),
            )
            assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
            assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()
            traffic = await flow.near
            assert (traffic.bytes_from_plain, traffic.bytes_to_plain, traffic.reset) == (len(up), len(down), False)
            assert not (await flow.far).reset

    run(body())


def test_urgent_data_stays_in_its_place(flow):
    async def body():
        async with flow:
            flow.application.send(b"before")
            flow.application.send(b"!", socket.MSG_OOB)
            flow.application.send(b"after")
            flow.application.shutdown(socket.SHUT_WR)
            assert await receive_all(flow.server) == b"before!after"
            flow.server.close()

    run(body())


@pytest.mark.parametrize("first", ["application", "server"])
def test_one_side_ends_and_the_other_goes_on(flow, first):
    async def body():
        loop = asyncio.get_running_loop()
        async with flow:
            ended = getattr(flow, first)
            other = flow.server if first == "application" else flow.application
            await loop.sock_sendall(ended, b"question")
            ended.shutdown(socket.SHUT_WR)
            assert await receive_all(other) == b"question"
            answer = os.urandom(3_000_000)
            await asyncio.gather(loop.sock_sendall(other, answer), _expect(ended, answer))
            other.shutdown(socket.SHUT_WR)
            assert await receive_all(ended) == b""
            assert not (await flow.near).reset
            assert not (await flow.far).reset

    async def _expect(sock, data):
        loop, got = asyncio.get_running_loop(), b""
        while len(got) < len(data):
            got += await loop.sock_recv(sock, 1 << 20)
        assert got == data

    run(body())


@pytest.mark.parametrize("who", ["application", "server"])
def test_a_reset_stays_a_reset(flow, who):
    async def body():
        loop = asyncio.get_running_loop()
        async with flow:
            cut = getattr(flow, who)
            other = flow.server if who == "application" else flow.application
            await loop.sock_sendall(cut, b"hello")
            assert await loop.sock_recv(other, 100) == b"hello"
            cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            cut.close()
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(other, 100)
            assert (await flow.near).reset
            assert (await flow.far).reset

    run(body())


def test_a_tunnel_that_is_cut_is_a_reset_and_not_an_end(flow):
    async def body():
        loop = asyncio.get_running_loop()
        async with flow:
            await loop.sock_sendall(flow.application, b"hello")
            assert await loop.sock_recv(flow.server, 100) == b"hello"
            flow.near.cancel()
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(flow.server, 100)
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(flow.application, 100)

    run(body())


def test_what_comes_after_the_end_is_not_kept(server_context, certificate):
    """A peer that goes on behind its close_notify fills nobody's memory."""

    async def body():
        loop = asyncio.get_running_loop()
        one, other = await tcp_pair()
        near, far = await asyncio.gather(
            TlsStream.client(one, Trust(ca_file=certificate).context, "gateway.test"),
            TlsStream.server(other, server_context),
        )
        plain, server = await tcp_pair()
        task = asyncio.create_task(relay(far, plain))
        near.notify_close()
        await loop.sock_sendall(one, near.outgoing.read())
        assert await loop.sock_recv(server, 100) == b""
        await loop.sock_sendall(one, bytes(20_000_000))  # far more than the kernel's buffers hold: it was read
        assert far.incoming.pending < 1_000_000
        await loop.sock_sendall(server, b"answer")
        assert await near.read() == b"answer"
        task.cancel()
        await asyncio.wait([task])
        one.close()
        server.close()

    run(body())


def test_a_reader_that_stalls_stops_its_writer(flow):
    async def body():
        loop = asyncio.get_running_loop()
        async with flow:
            sender = asyncio.create_task(loop.sock_sendall(flow.application, bytes(200_000_000)))
            before = -1
            while (taken := (await _settled(flow))) != before:
                before = taken
            assert taken < 100_000_000
            assert not sender.done()
            sender.cancel()

    async def _settled(flow):
        # Nothing announces that no more will be taken: what the kernel's buffers hold must stop growing.
        await asyncio.sleep(0.3)
        return flow.traffic.bytes_from_plain

    run(body())


def test_pin(certificate, server_context):
    async def body():
        one, other = await tcp_pair()
        trust = Trust(ca_file=certificate)
        near, far = await asyncio.gather(
            TlsStream.client(one, trust.context, "gateway.test"), TlsStream.server(other, server_context)
        )
        pin = pin_of(near.peer_certificate)
        Trust(pins=(pin,)).check(near, "gateway.test:1")
        near.abort()
        far.abort()
        return pin

    assert run(body()).startswith("pin-sha256:")


class PlainFlow:
    """`application` and `server` are the ends of a flow through one relay without TLS."""

    def __init__(self, *, half_closes=True):
        self.half_closes, self.traffic = half_closes, Traffic()

    async def __aenter__(self):
        self.application, near = await tcp_pair()
        far, self.server = await tcp_pair()
        stream = PlainStream(far, half_closes=self.half_closes)
        self.task = asyncio.create_task(relay(stream, near, b"early", self.traffic))
        assert await asyncio.get_running_loop().sock_recv(self.application, 5) == b"early"
        return self

    async def __aexit__(self, *exception):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.application.close()
        self.server.close()


def test_plain_large_data_both_ways_at_once():
    async def body():
        loop = asyncio.get_running_loop()
        up, down = os.urandom(9_000_001), os.urandom(7_000_003)
        async with PlainFlow() as flow:

            async def send(sock, data):
                await loop.sock_sendall(sock, data)
                sock.shutdown(socket.SHUT_WR)

            got_up, got_down, _, _ = await asyncio.gather(
                receive_all(flow.server),
                receive_all(flow.application),
                send(flow.application, up),
                send(flow.server, down),
            )
            assert (got_up, got_down) == (up, down)
            traffic = await flow.task
            assert (traffic.bytes_from_plain, traffic.bytes_to_plain) == (len(up), len(down) + 5)
            assert not traffic.reset

    run(body())


@pytest.mark.parametrize("who", ["application", "server"])
def test_plain_half_close_and_reset(who):
    async def body():
        loop = asyncio.get_running_loop()
        async with PlainFlow() as flow:
            one = getattr(flow, who)
            other = flow.server if who == "application" else flow.application
            one.shutdown(socket.SHUT_WR)
            assert await receive_all(other) == b""
            await loop.sock_sendall(other, b"answer")
            assert await loop.sock_recv(one, 100) == b"answer"
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(one, 100)
            assert (await flow.task).reset

    run(body())


def test_an_end_that_may_be_the_echo_of_our_own_is_a_reset():
    async def body():
        async with PlainFlow(half_closes=False) as flow:
            flow.application.shutdown(socket.SHUT_WR)
            assert await receive_all(flow.server) == b""
            flow.server.close()
            with pytest.raises(ConnectionResetError):
                await receive_all(flow.application)
        async with PlainFlow(half_closes=False) as flow:
            flow.server.shutdown(socket.SHUT_WR)
            assert await receive_all(flow.application) == b""
            flow.application.close()
            assert not (await flow.task).reset

    run(body())


def test_plain_reader_that_stalls_stops_its_writer():
    async def body():
        loop = asyncio.get_running_loop()
        async with PlainFlow() as flow:
            sender = asyncio.create_task(loop.sock_sendall(flow.application, bytes(200_000_000)))
            before = -1
            while (taken := flow.traffic.bytes_from_plain) != before:
                before = taken
                await asyncio.sleep(0.3)  # nothing announces that no more will be taken
            assert taken < 100_000_000
            assert not sender.done()
            sender.cancel()

    run(body())


def test_many_flows_read_less_at_once(monkeypatch):
    """So their buffers stay bounded, and their turns equal."""
    sizes = []
    for live in (0, 1, 100, 100_000):
        monkeypatch.setattr(relaying.ReceiveBuffers, "live", live)
        sizes.append(relaying._chunk_bytes())
    assert sizes[0] == sizes[1] == relaying.CHUNK_BYTES
    assert sizes[1] > sizes[2] > sizes[3] == 32 * 1024
