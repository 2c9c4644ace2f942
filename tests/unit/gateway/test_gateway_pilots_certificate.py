"""A pilot that shows a certificate: to its gateway, and to no other."""

import asyncio
import contextlib
import ssl
from ipaddress import IPv4Address

import pytest

from htcondor_vpn.errors import GatewayUntrusted, TokenRefused, TokenUnusable
from htcondor_vpn.gateway.operation.listening import listen
from htcondor_vpn.gateway.trust.client_certificate import ClientCertificates
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.tunnel.carriers.gateways import Gateway
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust

LOOPBACK = IPv4Address("127.0.0.1")


@contextlib.asynccontextmanager
async def pilot_of(running, trust, token=None, port=None):
    pilot = Gateway(GatewayConnections("127.0.0.1", port or running.port, trust, token))
    try:
        yield pilot
    finally:
        pilot.forget()
        await asyncio.gather(*pilot.connections._ready._making, return_exceptions=True)


@pytest.mark.parametrize("known_by", ["pin", "CA"])
async def test_a_certificate_and_no_token(running, echo_port, ca, ca_file, tmp_path, flow_lines, known_by):
    _, paths = ca.write(tmp_path, name="pilot-7")
    async with running(authenticators=[ClientCertificates(ca_file)], client_ca=ca_file) as gateway:
        if known_by == "pin":
            trust = Trust((gateway.credentials.pin,), certificate=paths)
        else:
            trust = Trust(ca_file=gateway.credentials.certificate, certificate=paths)
        async with echo_port() as port, pilot_of(gateway, trust) as pilot:
            assert (await pilot.probe()).families is not None
            for _ in range(3):
                stream, _ = await pilot.open_flow(LOOPBACK, port)
                await stream.write(b"hello")
                assert await stream.read() == b"hello"
                stream.abort()
    assert all("pilot=certificate:pilot-7" in line for line in flow_lines())


async def test_a_certificate_that_is_no_more_is_a_refusal(running, ca, ca_file, tmp_path):
    _, paths = ca.write(tmp_path, name="pilot-7")
    async with running(authenticators=[ClientCertificates(ca_file)], client_ca=ca_file) as gateway:
        gateway.deny_list.add("certificate:pilot-7")
        async with pilot_of(gateway, Trust((gateway.credentials.pin,), certificate=paths)) as pilot:
            with pytest.raises(TokenRefused):
                await pilot.probe()


async def test_a_renewed_certificate_is_shown_from_then_on(running, ca, ca_file, tmp_path):
    first, paths = ca.write(tmp_path)
    async with running(authenticators=[ClientCertificates(ca_file)], client_ca=ca_file) as gateway:
        trust = Trust((gateway.credentials.pin,), certificate=paths)
        async with pilot_of(gateway, trust) as pilot:
            await pilot.probe()
            gateway.deny_list.add(f"serial:{first.serial_number:x}")
            pilot.forget()
            with pytest.raises(TokenRefused):
                await pilot.probe()
            ca.write(tmp_path)
            pilot.forget()
            await pilot.probe()
            paths[1].write_text("half of a key")
            pilot.forget()
            await pilot.probe()


class OtherGateway:
    """Takes the place of a gateway: asks for a certificate and notes what it gets."""

    def __init__(self, context):
        self.context, self.certificates, self.said = context, [], b""
        self.context.verify_mode = ssl.CERT_OPTIONAL

    async def serve(self, listener):
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            stream = None
            with contextlib.suppress(OSError):
                stream = await TlsStream.server(sock, self.context)
                self.said += await stream.read()
            if stream is not None:
                self.certificates.append(stream.peer_certificate)
                stream.abort()


@pytest.mark.parametrize("known_by", ["pin", "CA"])
async def test_another_gateway_does_not_even_see_the_certificate(running, ca, ca_file, tmp_path, known_by):
    _, paths = ca.write(tmp_path)
    async with running() as right, running(client_ca=ca_file) as wrong:
        other = OtherGateway(wrong.credentials.server_context(ca_file))
        (listener,) = listen([("127.0.0.1", 0)])
        serving = asyncio.ensure_future(other.serve(listener))
        if known_by == "pin":
            trust = Trust((right.credentials.pin,), certificate=paths)
        else:
            trust = Trust(ca_file=right.credentials.certificate, certificate=paths)
        try:
            port = listener.getsockname()[1]
            async with pilot_of(wrong, trust, lambda: "secret", port) as pilot:
                with pytest.raises(GatewayUntrusted):
                    await pilot.probe()
                with pytest.raises(GatewayUntrusted):
                    await pilot.open_flow(LOOPBACK, 80)
            await asyncio.sleep(0)
            assert [each for each in other.certificates if each] == []
            assert other.said == b""
        finally:
            serving.cancel()
            listener.close()


def test_files_that_are_no_certificate(tmp_path, ca):
    _, (certificate, key) = ca.write(tmp_path)
    pin = "pin-sha256:" + "A" * 43 + "="
    for pair in ((key, certificate), (certificate, certificate), (tmp_path / "none", key)):
        with pytest.raises(TokenUnusable, match="no usable certificate"):
            Trust((pin,), certificate=pair)
