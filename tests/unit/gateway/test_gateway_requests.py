"""What the gateway answers itself."""

import json
import time

import pytest
from answers import ended, status_of

STATE = "/.well-known/htcondor-vpn"


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
