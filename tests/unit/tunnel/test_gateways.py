"""Connections to a gateway: which address is tried first, and how long a silent gateway is waited for."""

import asyncio
import socket
from ipaddress import IPv4Address

import pytest

from htcondor_vpn.tunnel import gateways
from htcondor_vpn.tunnel.gateways import Gateway
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust


def _talk(server_context, certificate, body):
    """Runs `body(gateway)` with a gateway at 127.0.0.1 that shakes hands and says nothing."""

    async def main():
        loop = asyncio.get_running_loop()
        held = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)

            async def serve():
                while True:
                    sock, _ = await loop.sock_accept(listener)
                    held.append(await TlsStream.server(sock, server_context))

            serving = asyncio.ensure_future(serve())
            gateway = Gateway("gateway.test", listener.getsockname()[1], Trust(ca_file=certificate), "secret")
            silent = (socket.AF_INET, ("127.0.0.2", 9))
            gateway._way._addresses = [silent, (socket.AF_INET, listener.getsockname())]
            try:
                return await body(gateway)
            finally:
                serving.cancel()
                for stream in held:
                    stream.abort()

    return asyncio.run(asyncio.wait_for(main(), 20))


def test_the_address_that_answered_is_tried_first_from_then_on(certificate, server_context):
    async def body(gateway):
        (await gateway.connect()).stream.abort()
        return [address[0] for _, address in gateway._way._addresses]

    assert _talk(server_context, certificate, body) == ["127.0.0.1", "127.0.0.2"]


def test_a_flow_is_not_waited_for_without_end(certificate, server_context, monkeypatch):
    monkeypatch.setattr(gateways, "FLOW_SECONDS", 0.05)

    async def body(gateway):
        with pytest.raises(asyncio.TimeoutError):
            await gateway.open_flow(IPv4Address("192.0.2.1"), 80)

    _talk(server_context, certificate, body)
