"""HTTP proxies, SOCKS servers and name servers behind them, against scripted ones."""

import asyncio
import socket

import pytest

from htcondor_vpn.errors import ProxyRefused
from htcondor_vpn.tunnel.carrier import FlowRefused
from htcondor_vpn.tunnel.carriers.dns_stream import StreamNameServer
from htcondor_vpn.tunnel.carriers.http_proxy import HttpProxy
from htcondor_vpn.tunnel.carriers.server import Server
from htcondor_vpn.tunnel.carriers.socks5 import Socks5
from htcondor_vpn.tunnel.carriers.ssh import named
from htcondor_vpn.wire.http import ProtocolError
from htcondor_vpn.wire.stream import PlainStream


class Scripted:
    """A server that answers each piece that it is expected to get; what came is in `got`."""

    def __init__(self, *answers):
        self.answers, self.got = answers, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader, writer):
        for answer in self.answers:
            self.got.append(await reader.read(65536))
            writer.write(answer)
            await writer.drain()
        await reader.read(1)
        writer.close()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def http_proxy(server, credentials=None):
    return HttpProxy("127.0.0.1", server.port, "KNOB", credentials)


def socks(server, credentials=None):
    return Socks5("socks", Server("SOCKS server", "127.0.0.1", server.port, "KNOB"), credentials)


def test_http_connect_with_credentials_and_early_bytes():
    async def body():
        async with Scripted(b"HTTP/1.1 200 Connection established\r\n\r\nhello") as server:
            stream, early = await http_proxy(server, ("us", "a:b")).connect("2001:db8::1", 7)
            stream.abort()
            return server.got[0], early

    got, early = run(body())
    assert got.startswith(b"CONNECT [2001:db8::1]:7 HTTP/1.1\r\n")
    assert b"\r\nProxy-Authorization: Basic dXM6YTpi\r\n" in got
    assert early == b"hello"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 111", "error=connection_refused"),
        (b"503 No\r\nX-Squid-Error: ERR_CONNECT_FAIL 110", "error=connection_timeout"),
        (b"503 No\r\nX-Squid-Error: what else", "what else"),
        (b"403 No", "error=destination_ip_prohibited"),
        (b"502 No\r\nProxy-Status: x; error=dns_error", "x; error=dns_error"),
    ],
)
def test_http_refusals(head, reason):
    async def body():
        async with Scripted(b"HTTP/1.1 " + head + b"\r\nContent-Length: 0\r\n\r\n") as server:
            await http_proxy(server).connect("192.0.2.1", 1)

    with pytest.raises(FlowRefused) as refused:
        run(body())
    assert refused.value.reason.endswith(reason)


def test_http_wants_a_password():
    async def body():
        async with Scripted(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n") as server:
            await http_proxy(server).connect("192.0.2.1", 1)

    with pytest.raises(ProxyRefused, match="without a password"):
        run(body())


@pytest.mark.parametrize(
    ("host", "request_"),
    [
        ("192.0.2.1", b"\5\1\0\1\xc0\x00\x02\x01\x00\x07"),
        ("2001:db8::1", b"\5\1\0\4" + socket.inet_pton(socket.AF_INET6, "2001:db8::1") + b"\0\7"),
        ("name.example", b"\5\1\0\3\x0cname.example\0\7"),
    ],
)
@pytest.mark.parametrize("bound", [b"\1\0\0\0\0\0\0", b"\4" + bytes(18), b"\3\3abc\0\0"])
def test_socks(host, request_, bound):
    async def body():
        async with Scripted(b"\5\0", b"\5\0\0" + bound + b"hello") as server:
            stream, early = await socks(server).connect(host, 7)
            said = early + await stream.read()
            stream.abort()
            return server.got, said

    got, said = run(body())
    assert got == [b"\5\1\0", request_]
    assert said == b"hello"


def test_socks_with_a_password():
    async def body():
        async with Scripted(b"\5\2", b"\1\0", b"\5\0\0\1" + bytes(6)) as server:
            stream, _ = await socks(server, ("us", "pass")).connect("192.0.2.1", 7)
            stream.abort()
            return server.got

    assert run(body())[:2] == [b"\5\2\0\2", b"\1\2us\4pass"]


@pytest.mark.parametrize(
    ("answers", "error", "words"),
    [
        ([b"\5\xff"], ProxyRefused, "us with what we have"),
        ([b"\5\2", b"\1\1"], ProxyRefused, "the name and password"),
        ([b"\5\0", b"\5\5\0\1" + bytes(6)], FlowRefused, "connection_refused"),
        ([b"\5\0", b"\5\2\0\1" + bytes(6)], FlowRefused, "destination_ip_prohibited"),
        ([b"\5\3"], ProtocolError, "was not offered"),
        ([b"\4\0"], ProtocolError, "no SOCKS5 server"),
    ],
)
def test_socks_refusals(answers, error, words):
    async def body():
        async with Scripted(*answers) as server:
            await socks(server, ("us", "pass")).connect("192.0.2.1", 7)

    with pytest.raises(error, match=words):
        run(body())


def dns_message(ident, length=40):
    return (length).to_bytes(2, "big") + ident + bytes(length - 2)


@pytest.mark.parametrize("pieces", [1, 2, 42])
def test_dns_over_tcp(pieces):
    """A connection is used again, and an answer may come in pieces."""
    count = 0

    async def body():
        async def serve(reader, writer):
            nonlocal count
            count += 1
            while head := await reader.read(2):
                query = await reader.readexactly(int.from_bytes(head, "big"))
                answer = dns_message(query[:2])
                step = -(-len(answer) // pieces)
                for start in range(0, len(answer), step):
                    writer.write(answer[start : start + step])
                    await writer.drain()
                    await asyncio.sleep(0)
            writer.close()

        async def connect(host, port):
            sock = socket.create_connection(server.sockets[0].getsockname())
            return PlainStream(sock), b""

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        name_server = StreamNameServer("127.0.0.1", 53, connect)
        answers = [await name_server.ask(ident + bytes(15)) for ident in (b"ab", b"cd")]
        name_server.forget()
        server.close()
        return answers

    assert [answer[:2] for answer in run(body())] == [b"ab", b"cd"]
    assert count == 1


@pytest.mark.parametrize(
    ("destination", "name"),
    [("login", "login:22"), ("me@login.example", "login.example:22"), ("ssh://me@login:2222", "login:2222")],
)
def test_names_of_login_nodes(destination, name):
    assert named(destination) == name
