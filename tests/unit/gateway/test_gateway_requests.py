"""What the gateway answers itself, what it makes of peers that mean no good, and plain requests that it passes on."""

import asyncio
import json
import socket
import ssl
import time

import pytest

STATE = "/.well-known/htcondor-vpn"


async def everything(sock):
    """Reads until the gateway ends the TCP connection."""
    data = b""
    loop = asyncio.get_running_loop()
    try:
        while piece := await loop.sock_recv(sock, 65536):
            data += piece
    except ConnectionResetError:
        return data
    finally:
        sock.close()
    return data


async def status_of(stream):
    """The status of the answer to something odd."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = await stream.read()
        assert piece, answer
        answer += piece
    return int(answer.split()[1])


async def ended(stream):
    """Reads to the end that the gateway makes."""
    while await stream.read():
        pass
    return True


async def test_the_state(running):
    async with running() as gateway:
        client = await gateway.client()
        instances = set()
        for _ in range(3):
            answer = await gateway.ask(client, "GET", STATE)
            assert answer.status == 200
            state = json.loads(answer.body)
            instances.add(state["instance"])
        assert len(instances) == 1
        assert set(state) == {"version", "instance", "families", "udp", "flows", "load", "draining", "time"}
        assert set(state["families"]) <= {"ipv4", "ipv6"}
        assert state["flows"] == 0
        assert abs(state["time"] - time.time()) < 10


async def test_a_proxy_authorization_does_for_all(running):
    async with running() as gateway:
        client = await gateway.client()
        fields = [("Host", "x"), ("Proxy-Authorization", f"bearer {gateway.token}")]
        assert (await client.exchange("GET", STATE, fields)).status == 200


@pytest.mark.parametrize("count", [0, 1, 100_000, 3_000_000])
async def test_a_speed_test(running, count):
    async with running() as gateway:
        client = await gateway.client()
        if count < 128 * 1024:  # what the pilots' side keeps of a body
            answer = await gateway.ask(client, "GET", f"{STATE}/bytes?count={count}")
            assert (answer.status, len(answer.body)) == (200, count)
        answer = await gateway.ask(client, "POST", f"{STATE}/bytes", b"x" * count)
        if count:
            assert json.loads(answer.body) == {"bytes": count}
        assert (await gateway.ask(client, "GET", STATE)).status == 200


@pytest.mark.parametrize("count", ["-1", "x", "67108865", "9" * 5000, "1e3", "%D9%A3", "1%0A"])
async def test_a_speed_test_that_asks_for_nonsense(running, count):
    async with running() as gateway:
        client = await gateway.client()
        assert (await gateway.ask(client, "GET", f"{STATE}/bytes?count={count}")).status == 400


async def test_an_upload_that_is_too_large(running):
    async with running() as gateway:
        stream = await gateway.stream()
        await stream.write(
            f"POST {STATE}/bytes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n"
            f"Content-Length: {64 * 1024 * 1024 + 1}\r\n\r\n".encode()
        )
        assert await status_of(stream) == 413


async def test_an_upload_of_unknown_length_that_is_too_large(running, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.serving.own_resources.MAX_SPEED_BYTES", 1000)
    async with running() as gateway:
        stream = await gateway.stream()
        await stream.write(
            f"POST {STATE}/bytes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
            + b"800\r\n" + b"x" * 0x800 + b"\r\n"
        )  # fmt: skip
        assert await status_of(stream) == 413
        assert await ended(stream)


async def test_expect_100_continue(running):
    async with running() as gateway:
        stream = await gateway.stream()
        await stream.write(
            f"POST {STATE}/bytes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.token}\r\n"
            "Content-Length: 3\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert await status_of(stream) == 100
        await stream.write(b"abc")
        assert await status_of(stream) == 200


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("HEAD", "/", 404),
        ("GET", STATE + "/", 404),
        ("GET", "//[", 404),
        ("GET", "/?%ff=%", 404),
        ("GET", "/dns-query?dns=%ff%ff", 400),
        ("DELETE", STATE, 405),
        ("HEAD", STATE, 405),
        ("OPTIONS", "*", 407),
        ("GET", "https://example.org/", 407),
        ("CONNECT", "nonsense", 400),
        ("CONNECT", "127.0.0.1:0", 400),
        ("CONNECT", "/", 400),
    ],
)
async def test_requests_for_nothing(running, method, target, status):
    async with running() as gateway:
        answer = await gateway.ask(await gateway.client(), method, target)
        assert answer.status == status


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic YTpi", "Bearer " + "x" * 9000])
async def test_no_good_token(running, header):
    fields = [("Host", "x")]
    for method, target, field, status, challenge in [
        ("GET", STATE, "Authorization", 401, "www-authenticate"),
        ("CONNECT", "127.0.0.1:1", "Proxy-Authorization", 407, "proxy-authenticate"),
        ("GET", "http://127.0.0.1:1/", "Proxy-Authorization", 407, "proxy-authenticate"),
    ]:
        async with running() as gateway:
            client = await gateway.client()
            answer = await client.exchange(method, target, [*fields, *([(field, header)] if header else [])])
            assert answer.status == status
            assert answer.headers[challenge].startswith('Bearer realm="htcondor-vpn"')
            assert answer.headers["connection"] == "close"
            assert await client.stream.read() == b""


async def test_an_origins_authorization_is_no_token(running):
    """In a request to be passed on, that header belongs to the server."""
    async with running() as gateway:
        client = await gateway.client()
        fields = [("Host", "127.0.0.1:1"), ("Authorization", f"Bearer {gateway.token}")]
        assert (await client.exchange("GET", "http://127.0.0.1:1/", fields)).status == 407


async def test_a_token_is_checked_at_every_request(running):
    async with running() as gateway:
        client = await gateway.client()
        assert (await gateway.ask(client, "GET", STATE)).status == 200
        gateway.tokens.revoke("alice")
        assert (await gateway.ask(client, "GET", STATE)).status == 401


async def test_a_token_database_that_broke(running, monkeypatch):
    async with running() as gateway:
        client = await gateway.client()
        gateway.tokens.close()
        answer = await gateway.ask(client, "GET", STATE)
        assert answer.status == 503


# Hostile peers


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
    async with running(head_seconds=2) as gateway:
        stream = await gateway.stream()
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def drip():
            while True:
                await stream.write(b"G")
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        await asyncio.wait([dripping], timeout=2.5)
        dripping.cancel()
        assert await status_of(stream) == 408
        assert loop.time() - started < 20


async def test_a_silent_peer_is_let_go(running):
    async with running(head_seconds=2, idle_seconds=0.3) as gateway:
        silent = await gateway.stream()
        assert await status_of(silent) == 408
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


# Plain requests that are passed on


async def forwarded(gateway, target, method="GET", body=b"", headers=()):
    client = await gateway.client()
    fields = [("Host", "ignored"), ("Proxy-Authorization", f"Bearer {gateway.token}"), *headers]
    return await client.exchange(method, target, fields, body)


@pytest.fixture
def web(far_side):
    """A server that records each request and answers with what it is told; "" means to close without an answer."""
    requests = []

    def start(answer):
        async def serve(sock):
            loop, request = asyncio.get_running_loop(), b""
            while b"\r\n\r\n" not in request:
                request += await loop.sock_recv(sock, 65536)
            while b"Content-Length: 5" in request and not request.endswith(b"hello"):
                request += await loop.sock_recv(sock, 65536)
            requests.append(request)
            await loop.sock_sendall(sock, answer)

        return far_side(serve)

    start.requests = requests
    return start


async def test_a_request_is_passed_on(running, web):
    fields = (
        "X-Name: Größe\r\n".encode()
        + b"Content-Length: 2\r\nKeep-Alive: 5\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\n"
    )
    answer = b"HTTP/1.1 200 Fine\r\n" + fields + b"\r\nok"
    async with running() as gateway, web(answer) as port:
        headers = [("Authorization", "Basic abc"), ("Connection", "x-mine"), ("X-Mine", "1"), ("TE", "trailers")]
        got = await forwarded(gateway, f"http://127.0.0.1:{port}/a?b=c", "POST", b"hello", headers)
    assert (got.status, got.body, got.headers["x-end"]) == (200, b"ok", "2")
    assert got.headers["x-name"].encode("latin-1").decode() == "Größe"
    assert "x-hop" not in got.headers
    (request,) = web.requests
    assert request.startswith(f"POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n".encode())
    assert request.endswith(b"\r\n\r\nhello")
    lowered = request.lower()
    assert b"authorization: basic abc" in lowered
    for absent in (b"proxy-", b"x-mine", b"te:", b"ignored", gateway.token.lower().encode()):
        assert absent not in lowered


async def test_the_length_of_a_body_is_for_everyone(running, web):
    """Also where a client says that it was for the gateway alone: without it the body could not be passed on."""
    answer = b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nok"
    async with running() as gateway, web(answer) as port:
        headers = [("Connection", "Content-Length")]
        got = await forwarded(gateway, f"http://127.0.0.1:{port}/", "POST", b"hello", headers)
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"ok", "2")
    assert web.requests[0].endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
    ],
)
async def test_answers_of_every_shape(running, web, answer, body):
    async with running() as gateway, web(answer) as port:
        got = await forwarded(gateway, f"http://127.0.0.1:{port}")
        assert (got.status // 100, got.body) == (2, body)
        assert web.requests[0].startswith(b"GET / HTTP/1.1")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "connection_terminated"),
        (b"rubbish\r\n\r\n", "http_protocol_error"),
        (b"HTTP/1.1 2", "http_protocol_error"),
    ],
)
async def test_answers_that_are_none(running, web, answer, error):
    async with running() as gateway, web(answer) as port:
        got = await forwarded(gateway, f"http://127.0.0.1:{port}/")
        assert (got.status, got.headers["proxy-status"]) == (502, f"htcondor-vpn; error={error}")


async def test_an_answer_that_breaks_off_does_not_look_whole(running, web):
    async with running() as gateway, web(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc") as port:
        with pytest.raises(ConnectionResetError):
            await forwarded(gateway, f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.9/", 403),
        ("http://[::1/", 400),
        ("http://a:b/", 400),
        ("http://[::1%25lo]/", 400),
        ("http://user@127.0.0.1/", 400),
        ("ftp://127.0.0.1/", 400),
        ("http:///", 400),
    ],
)
async def test_what_is_not_passed_on(running, target, status):
    async with running() as gateway:
        assert (await forwarded(gateway, target)).status == status
