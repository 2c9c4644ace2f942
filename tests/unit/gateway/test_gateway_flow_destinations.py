"""Where flows may go, and what becomes of those that cannot, through a real gateway on loopback."""

import socket

import pytest

from htcondor_vpn.gateway.serving.destinations import PublicPolicy


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
