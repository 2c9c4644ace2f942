"""Connections to a gateway: which address is tried first, how long a silent one is waited for, what it may say."""

import asyncio
import socket
from ipaddress import IPv4Address

import pytest

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.tunnel.carrier import FlowRefused
from htcondor_vpn.tunnel.carriers import gateway_connections
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.tunnel.carriers.gateways import Gateway
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust


def _talk(server_context, certificate, body, *says):
    """Runs `body(gateway)` with a gateway at 127.0.0.1 that shakes hands and says nothing; or to the n-th connection
    the n-th of `says`, to the last the last of them: a list of bytes, each when it was asked, and at its end it ends.
    """

    async def main():
        loop = asyncio.get_running_loop()
        held, turns = [], []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)

            async def serve_one(stream, answers):
                for answer in answers:
                    await stream.read()
                    await stream.write(answer)
                await stream.close()

            async def serve():
                while True:
                    sock, _ = await loop.sock_accept(listener)
                    held.append(await TlsStream.server(sock, server_context))
                    if says:
                        answers = says[min(len(held), len(says)) - 1]
                        turns.append(asyncio.ensure_future(serve_one(held[-1], answers)))

            serving = asyncio.ensure_future(serve())
            trust, port = Trust(ca_file=certificate), listener.getsockname()[1]
            gateway = Gateway(GatewayConnections("gateway.test", port, trust, lambda: "secret"))
            silent = (socket.AF_INET, ("127.0.0.2", 9))
            gateway.connections.way._addresses = [silent, (socket.AF_INET, listener.getsockname())]
            try:
                return await body(gateway)
            finally:
                for task in (serving, *turns):
                    task.cancel()
                for stream in held:
                    stream.abort()

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_the_address_that_answered_is_tried_first_from_then_on(certificate, server_context):
    async def body(gateway):
        (await gateway.connections.connect()).stream.abort()
        return [address[0] for _, address in gateway.connections.way._addresses]

    assert _talk(server_context, certificate, body) == ["127.0.0.1", "127.0.0.2"]


def test_a_flow_is_not_waited_for_without_end(certificate, server_context, monkeypatch):
    monkeypatch.setattr(gateway_connections, "FLOW_SECONDS", 0.05)

    async def body(gateway):
        with pytest.raises(asyncio.TimeoutError):
            await gateway.open_flow(IPv4Address("192.0.2.1"), 80)

    _talk(server_context, certificate, body)


FULL = b"HTTP/1.1 %d Full\r\nProxy-Status: htcondor-vpn; error=proxy_internal_error\r\nContent-Length: 0\r\n\r\n"
STATE = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"families":["ipv4"]}'


@pytest.mark.parametrize("says", [[FULL % 503], [FULL % 429], []])
def test_a_gateway_that_takes_no_flow_says_nothing_about_the_destination(certificate, server_context, says):
    async def body(gateway):
        with pytest.raises(GatewayUnreachable):
            await gateway.open_flow(IPv4Address("192.0.2.1"), 80)
        with pytest.raises(GatewayUnreachable):
            await gateway.open_datagrams(IPv4Address("192.0.2.1"), 80)

    _talk(server_context, certificate, body, says)


def test_a_destination_that_is_refused_is_refused(certificate, server_context):
    async def body(gateway):
        with pytest.raises(FlowRefused):
            await gateway.open_flow(IPv4Address("192.0.2.1"), 80)

    _talk(server_context, certificate, body, [FULL % 502])


def test_a_gateway_that_hands_over_is_not_lost(certificate, server_context):
    """It ends the probed connection in order, and another process of it answers the next one."""

    async def body(gateway):
        await gateway.probe()
        with pytest.raises(ConnectionError):  # of the third connection, which ends unasked
            await gateway.lost()

    _talk(server_context, certificate, body, [STATE], [STATE], [])


def probed(certificate, server_context, told):
    body = b'{"families":["ipv4"],' + told + b"}"

    async def probe(gateway):
        try:
            return await gateway.probe()
        finally:
            gateway.forget()

    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    return _talk(server_context, certificate, probe, [head + body])


def test_what_a_gateway_tells_of_itself(certificate, server_context):
    answer = probed(certificate, server_context, b'"udp":true,"load":0.25,"draining":true,"instance":"abc"')
    assert (answer.udp, answer.load, answer.draining, answer.instance) == (True, 0.25, True, "abc")


@pytest.mark.parametrize(
    ("load", "believed"),
    [
        (b"-1", 0), (b"7", 1), (b"1" + 400 * b"0", 1), (b"Infinity", 1), (b"NaN", 0), (b"true", 0), (b'"1"', 0),
        (b"[]", 0),
    ],
)  # fmt: skip
def test_a_load_that_is_none(certificate, server_context, load, believed):
    answer = probed(certificate, server_context, b'"load":' + load + b',"draining":1,"instance":["' + 99 * b"x" + b'"]')
    assert (answer.load, answer.draining, len(answer.instance)) == (believed, False, 64)
