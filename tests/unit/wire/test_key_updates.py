"""A peer that asks for new keys without end, and takes no answer: what is kept for it stays bounded."""

import asyncio
import contextlib
import socket
import ssl

import pytest
from key_updates import SIZE_BYTES, key_updates, revealing_context

from htcondor_vpn.wire import datagrams
from htcondor_vpn.wire import relay as relaying
from htcondor_vpn.wire.datagrams import CapsulePipe
from htcondor_vpn.wire.relay import relay
from htcondor_vpn.wire.tls import TlsStream

DEADLINE_SECONDS = 60
#: Many times what the peer may leave untaken.
MANY = 10_000


class Hostile:
    """Its side of the TLS connection `stream`, without which nothing is read from `sock`."""

    def __init__(self, certificate, keys):
        self._context, self._keys = revealing_context(certificate, keys), keys
        self._serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._serving.load_cert_chain(certificate)
        self._serving.num_tickets = 0  # so that what it reads first is an answer

    async def __aenter__(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.socket()
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.sock.connect(listener.getsockname())
            ours, _ = listener.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client, self.stream = await asyncio.gather(
            TlsStream.client(self.sock, self._context, "gateway.test"), TlsStream.server(ours, self._serving)
        )
        self._cipher = client.tls.cipher()[0]
        return self

    async def __aexit__(self, *exception):
        self.sock.close()
        self.stream.abort()

    async def flood(self, count):
        with contextlib.suppress(ConnectionError):  # it was cut
            updates = key_updates(self._cipher, self._keys, count)
            await asyncio.get_running_loop().sock_sendall(self.sock, updates)


@pytest.fixture
def hostile(certificate, tmp_path):
    return Hostile(certificate, tmp_path / "keys")


def run(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, DEADLINE_SECONDS))


def test_a_flow_is_cut(hostile, monkeypatch):
    monkeypatch.setattr(relaying, "CHUNK_BYTES", 32 * 1024)

    async def body():
        plain, far = socket.socketpair()
        with far:
            async with hostile:
                _, traffic = await asyncio.gather(hostile.flood(MANY), relay(hostile.stream, plain))
            assert traffic.reset

    run(body())


def test_a_way_for_datagrams_is_cut(hostile, monkeypatch):
    monkeypatch.setattr(datagrams, "_READ_BYTES", 32 * 1024)
    monkeypatch.setattr(datagrams, "_SEND_BUFFER_BYTES", 4096)

    async def body():
        async with hostile:
            pipe = CapsulePipe(hostile.stream)
            pipe.start(lambda _: None)
            flooding = asyncio.ensure_future(hostile.flood(MANY))
            while not await pipe.ended(DEADLINE_SECONDS):
                pass
            assert pipe.broken
            await flooding
            pipe.close()

    run(body())


def test_who_waits_for_a_message_answers_meanwhile(hostile):
    """And waits for the peer to take the answers before it takes more."""

    async def body():
        async with hostile:
            reading = asyncio.ensure_future(hostile.stream.read())
            await hostile.flood(2)  # OpenSSL answers each one when the next one comes
            answer = await asyncio.get_running_loop().sock_recv(hostile.sock, 4096)
            assert len(answer) == SIZE_BYTES
            reading.cancel()
            await asyncio.wait([reading])

    run(body())


def test_a_connection_in_waiting_is_given_up(hostile):
    async def body():
        async with hostile:
            assert hostile.stream.waits()
            await hostile.flood(2)
            arrived = asyncio.Event()
            asyncio.get_running_loop().add_reader(hostile.stream.sock, arrived.set)
            await arrived.wait()
            asyncio.get_running_loop().remove_reader(hostile.stream.sock)
            assert not hostile.stream.waits()

    run(body())
