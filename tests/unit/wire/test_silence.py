"""A peer that vanished without a word ends a flow; one that only does not read does not. On loopback."""

import asyncio
import ctypes
import socket
import struct
import time

import pytest

from htcondor_vpn.wire import datagrams, silence
from htcondor_vpn.wire.datagrams import CapsulePipe
from htcondor_vpn.wire.relay import Traffic, relay
from htcondor_vpn.wire.silence import Silence
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust

_SO_ATTACH_FILTER, _RETURN = 26, 0x06
DEADLINE_SECONDS = 40


def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def vanish(sock):
    """Has the kernel drop whatever comes for `sock`, before it is acknowledged: as if its host were gone."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN, 0, 0, 0))
    pointer = struct.pack("HP", 1, ctypes.addressof(program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
    except PermissionError:
        sock.close()
        pytest.skip("this kernel lets no ordinary user filter a socket of their own")


async def until(done):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not done():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch):
    for module, name, seconds in (
        (silence, "FLOW_SECONDS", 1.0), (silence, "_LOOK_SECONDS", 0.2), (datagrams, "_SILENT_SECONDS", 1.0),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, seconds)


def test_what_nobody_acknowledges_is_silence():
    one, other = pair()
    with one, other:
        watched = Silence(one)
        assert watched.seconds() == 0
        vanish(other)
        one.send(b"x")
        asyncio.run(until(lambda: watched.seconds() > 1))


def test_a_reader_that_stalls_is_not_silent():
    one, other = pair()
    with one, other:
        watched = Silence(one)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            try:
                one.send(bytes(100_000))
            except BlockingIOError:
                time.sleep(0.05)
            assert watched.seconds() == 0


def test_a_flow_is_cut_whose_gateway_vanished(impatient):
    async def main():
        tunnel, gateway = pair()
        near, application = pair()
        with gateway, application:
            vanish(gateway)
            application.send(b"x")
            tunnel.setblocking(False)
            traffic = await asyncio.wait_for(relay(PlainStream(tunnel), near, traffic=Traffic()), DEADLINE_SECONDS)
            assert traffic.reset
            with pytest.raises(ConnectionResetError):
                application.recv(1)

    asyncio.run(main())


def test_a_flow_goes_on_whose_reader_stalls(impatient):
    async def main():
        tunnel, gateway = pair()
        near, application = pair()
        with gateway, application:
            tunnel.setblocking(False)
            application.setblocking(False)
            relaying = asyncio.ensure_future(relay(PlainStream(tunnel), near))
            end, count = time.monotonic() + 3, 0
            while time.monotonic() < end:
                try:
                    count += application.send(bytes(100_000))
                except BlockingIOError:
                    await asyncio.sleep(0.05)
                assert not relaying.done()
            application.shutdown(socket.SHUT_WR)
            got, loop = 0, asyncio.get_running_loop()
            gateway.setblocking(False)
            while data := await asyncio.wait_for(loop.sock_recv(gateway, 1 << 20), DEADLINE_SECONDS):
                got += len(data)
            assert got == count
            gateway.shutdown(socket.SHUT_WR)
            assert not (await relaying).reset

    asyncio.run(main())


def test_datagrams_leave_a_way_whose_gateway_vanished(impatient, certificate, server_context):
    async def main():
        tunnel, gateway = pair()
        context = Trust(ca_file=certificate).context
        stream, far = await asyncio.gather(
            TlsStream.client(tunnel, context, "gateway.test"), TlsStream.server(gateway, server_context)
        )
        pipe = CapsulePipe(stream)
        pipe.start(lambda _: None)
        assert not await pipe.ended(0.1)
        vanish(gateway)
        pipe.send(b"x")
        begin = time.monotonic()
        while not await pipe.ended(0.2):
            assert time.monotonic() - begin < DEADLINE_SECONDS
        assert pipe.broken
        pipe.close()
        far.abort()

    asyncio.run(main())
