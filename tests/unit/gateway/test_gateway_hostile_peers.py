"""What the gateway makes of peers that mean no good, or say nothing."""

import asyncio
import socket
import ssl

import pytest
from answers import ended, everything, status_of

STATE = "/.well-known/htcondor-vpn"


async def test_plain_http(running):
    async with running() as gateway:
        sock = await gateway.raw()
        await asyncio.get_running_loop().sock_sendall(sock, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in await everything(sock)


async def test_rubbish_instead_of_tls(running):
    async with running() as gateway:
        for rubbish in (b"\x16\x03\x01\xff\xff" + b"\0" * 70000, b"\0" * 10, bytes(range(256)) * 100):
            sock = await gateway.raw()
            with_end = asyncio.ensure_future(everything(sock))
            try:
                await asyncio.get_running_loop().sock_sendall(sock, rubbish)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            await with_end
        assert (await gateway.ask(await gateway.client(), "GET", STATE)).status == 200


async def test_an_old_tls(running):
    async with running() as gateway:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await asyncio.open_connection("127.0.0.1", gateway.port, ssl=context)


async def test_a_handshake_that_never_comes(running):
    async with running(head_seconds=0.3) as gateway:
        assert await everything(await gateway.raw()) == b""


async def test_a_head_that_comes_too_slowly(running):
    async with running(head_seconds=4) as gateway:
        stream = await gateway.stream()
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def drip():
            while True:
                await stream.write(b"G")
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        await asyncio.wait([dripping], timeout=4.5)
        dripping.cancel()
        assert await status_of(stream) == 408
        assert loop.time() - started < 20


async def test_a_silent_peer_is_let_go(running):
    async with running(head_seconds=4) as gateway:
        assert await status_of(await gateway.stream()) == 408
    async with running(idle_seconds=0.3) as gateway:
        client = await gateway.client()
        assert (await gateway.ask(client, "GET", STATE)).status == 200
        assert await status_of(client.stream) == 408


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 30000,
        b"GET /" + b"x" * 30000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000,
    ],
)
async def test_an_endless_head(running, head):
    async with running() as gateway:
        stream = await gateway.stream()
        await stream.write(head)
        assert await status_of(stream) == 431
        assert await ended(stream)


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n\r\n\r\n\r\nrubbish\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"\x00\x01\x02\r\n\r\n",
    ],
)
async def test_heads_that_are_none(running, head):
    async with running() as gateway:
        stream = await gateway.stream()
        await stream.write(head)
        assert await status_of(stream) == 400
        assert await ended(stream)


@pytest.mark.parametrize("head", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
async def test_another_http(running, head):
    async with running() as gateway:
        stream = await gateway.stream()
        await stream.write(head)
        assert await status_of(stream) in (401, 407)
        assert await ended(stream)


async def test_an_answer_overtakes_a_body_that_no_one_wants(running):
    """The peer must be able to read the refusal though it is still sending."""
    async with running() as gateway:
        stream = await gateway.stream()
        await stream.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 300_000)
        assert await status_of(stream) == 401


async def test_peers_that_vanish(running):
    async with running() as gateway:
        for _ in range(20):
            stream = await gateway.stream()
            await stream.write(b"GET / HT")
            stream.abort()
        assert (await gateway.ask(await gateway.client(), "GET", STATE)).status == 200


async def test_requests_in_one_piece(running):
    async with running() as gateway:
        stream = await gateway.stream()
        one = f"GET /nothing HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n\r\n".encode()
        await stream.write(one * 3)
        answers = b""
        while answers.count(b"HTTP/1.1 404") < 3:
            answers += await stream.read()


async def test_sessions_are_resumed(running):
    async with running() as gateway:
        client = await gateway.client()
        await gateway.ask(client, "GET", STATE)
        session = client.stream.tls.session
        assert session is not None
        assert session.has_ticket


async def test_the_log_has_no_token(running, echo_port, caplog):
    caplog.set_level("DEBUG")
    async with running() as gateway, echo_port() as port:
        stream = await gateway.flow(port)
        await stream.close()
        client = await gateway.client()
        await gateway.ask(client, "CONNECT", "nonsense")
        client = await gateway.client()
        await gateway.ask(client, "GET", STATE, token="some-wrong-token")
    assert gateway.token not in caplog.text
    assert "some-wrong-token" not in caplog.text
