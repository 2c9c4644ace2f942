"""The carrier of plain sockets, on loopback."""

import asyncio
import contextlib
import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.tunnel.carrier import FlowRefused
from htcondor_vpn.tunnel.carriers import dns_plain
from htcondor_vpn.tunnel.carriers.direct import DirectCarrier
from htcondor_vpn.wire.dialing import HOST

LOOPBACK = ip_address("127.0.0.1")
QUERY = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x04name\x00\x00\x01\x00\x01"


class Failing:
    """A source whose sockets cannot be had, or cannot reach anything: `code` is the errno."""

    def __init__(self, code, on_connect=False):
        self.code, self.on_connect = code, on_connect

    async def open(self, family, kind, protocol=0):
        failure = OSError(self.code, "no")
        if not self.on_connect:
            raise failure

        class Sock(socket.socket):
            def connect(self, _):
                raise failure

        sock = Sock(family, kind)
        sock.setblocking(False)
        return sock


class NameServer(asyncio.DatagramProtocol):
    """Answers over UDP, if `talks`, truncated if `short`, and over TCP; `asked` is how."""

    def __init__(self, talks=True, short=False):
        self.talks, self.short, self.asked = talks, short, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._stream, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", self.port)
        )
        return self

    async def __aexit__(self, *_):
        self.transport.close()
        self.server.close()
        await self.server.wait_closed()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, peer):
        self.asked.append("udp")
        if self.talks:
            self.transport.sendto(b"\0\0" + query[2:], peer)  # a forged one, which is none
            self.transport.sendto(query[:2] + (b"\x82" if self.short else b"\x80") + query[3:], peer)

    async def _stream(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                query = await reader.readexactly(length)
                self.asked.append("tcp")
                answer = query[:2] + b"\x80" + query[3:] + b"whole"
                writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()


def carrier(source=HOST, servers=(), **options):
    return DirectCarrier("plain", source, servers, 3.0, **options)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_flow_is_a_connection():
    async def body():
        async def greet(_, writer):
            writer.write(b"hello")
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            stream, early = await carrier().open_flow(LOOPBACK, server.sockets[0].getsockname()[1])
            assert early == b""
            assert await stream.read_exactly(5) == b"hello"
            stream.abort()

    run(body())


def test_a_closed_port_is_told_as_a_gateway_tells_it():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(FlowRefused) as refusal:
            run(carrier().open_flow(LOOPBACK, sock.getsockname()[1]))
    assert (refusal.value.status, refusal.value.reason) == (502, "htcondor-vpn; error=connection_refused")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (errno.ENETUNREACH, 502, "destination_ip_unroutable"),
        (errno.EHOSTUNREACH, 502, "destination_ip_unroutable"),
        (errno.ETIMEDOUT, 504, "connection_timeout"),
        (errno.ECONNRESET, 502, "connection_terminated"),
    ],
)
def test_what_fails_keeps_its_reason(code, status, reason):
    with pytest.raises(FlowRefused) as refusal:
        run(carrier(Failing(code, on_connect=True)).open_datagrams(LOOPBACK, 7))
    assert (refusal.value.status, refusal.value.reason) == (status, f"htcondor-vpn; error={reason}")


def test_a_source_that_fails_is_no_destination_that_refuses():
    for opening in (carrier(Failing(errno.EMFILE)).open_flow(LOOPBACK, 7),
                    carrier(Failing(errno.EPIPE)).open_datagrams(LOOPBACK, 7)):  # fmt: skip
        with pytest.raises(GatewayUnreachable, match="plain has no socket"):
            run(opening)


def test_datagrams_both_ways_and_a_port_where_nobody_listens():
    async def body():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            far.setblocking(False)
            arrived = asyncio.Queue()
            pipe = await carrier().open_datagrams(LOOPBACK, far.getsockname()[1])
            pipe.start(arrived.put_nowait)
            loop = asyncio.get_running_loop()
            for payload in (b"", b"x" * 60000):
                assert pipe.send(payload)
                while True:
                    try:
                        got, peer = far.recvfrom(65536)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.01)
                far.sendto(got + b"!", peer)
                assert await arrived.get() == payload + b"!"
            assert not await pipe.ended(0.01)
        pipe.send(b"to nobody")
        assert await arrived.get() is None
        pipe.end()
        assert await pipe.ended(10)
        pipe.close()
        pipe.close()
        assert loop.time() > pipe.last - 1

    run(body())


def test_no_datagrams_where_they_are_not_carried():
    with pytest.raises(FlowRefused, match="carries no datagrams"):
        run(carrier(udp=False).open_datagrams(LOOPBACK, 7))


@pytest.mark.parametrize(
    ("talks", "short", "asked"),
    [(True, False, ["udp"]), (True, True, ["udp", "tcp"]), (False, False, ["udp", "tcp"])],
)
def test_names_are_asked_by_a_datagram_and_else_over_tcp(monkeypatch, talks, short, asked):
    monkeypatch.setattr(dns_plain, "_DATAGRAM_SECONDS", 10.0 if talks else 0.2)

    async def body():
        async with NameServer(talks, short) as server:
            plain = carrier(servers=[("127.0.0.1", server.port)])
            answer = await plain.ask_dns(QUERY)
            plain.forget()
            return answer, server.asked

    answer, how = run(body())
    assert how == asked
    assert answer.startswith(b"\x12\x34\x80")
    assert answer.endswith(b"whole") == ("tcp" in asked)


def test_a_probe_asks_all_name_servers():
    async def body():
        async with NameServer() as server:
            plain = carrier(servers=[("127.0.0.1", server.port)])
            first = await plain.probe()
            plain.use([("127.0.0.1", server.port)], ("ipv6", "ipv4"))
            return first, await plain.probe()

    first, second = run(body())
    assert (first.families, first.udp) == (("ipv4",), True)
    assert second.families == ("ipv4", "ipv6")


def test_a_probe_without_an_answer():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(GatewayUnreachable, match="does not answer through plain"):
            run(carrier(servers=[("127.0.0.1", sock.getsockname()[1])]).probe())
    with pytest.raises(GatewayUnreachable, match="no name server"):
        run(carrier().probe())


def test_what_lies_below_is_asked_whether_it_is_lost():
    async def body():
        gone, forgotten = asyncio.Event(), []
        plain = carrier(lost=gone.wait, forget=lambda: forgotten.append(True))
        waiting = asyncio.ensure_future(plain.lost())
        gone.set()
        await waiting
        plain.forget()
        return forgotten

    assert run(body())
