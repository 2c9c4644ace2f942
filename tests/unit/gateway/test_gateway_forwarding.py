"""Plain requests that the gateway passes on."""

import asyncio

import pytest

STATE = "/.well-known/htcondor-vpn"


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
