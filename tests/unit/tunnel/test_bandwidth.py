"""Measuring the way to a gateway, which may not let itself be measured at first."""

import asyncio
import contextlib
import socket

import pytest

from htcondor_vpn.tunnel import bandwidth
from htcondor_vpn.tunnel.bandwidth import FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS, Bandwidth
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.tunnel.carriers.gateways import Gateway
from htcondor_vpn.tunnel.members import Lone
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.tunnel.stream import StreamEngine
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust

FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nfull\n"
PROBE = b"/.well-known/htcondor-vpn?"
STATE = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"families":["ipv4"]}'
DOWNLOAD = b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n"


class Measurable:
    """A gateway's side that answers `refusal` to requests of the methods in `refused`; without one it cuts them."""

    def __init__(self, server_context, refused, refusal):
        self._context, self.refused, self._refusal = server_context, refused, refusal
        self.asked = []

    async def serve(self, listener):
        served = []
        try:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                served.append(asyncio.ensure_future(self._serve_one(sock)))
        finally:
            for each in served:
                each.cancel()
            await asyncio.gather(*served, return_exceptions=True)

    async def _serve_one(self, sock):
        stream = await TlsStream.server(sock, self._context)
        with contextlib.suppress(OSError):
            while (asked := (await stream.read()).split(b" "))[1].startswith(PROBE):
                await stream.write(STATE)
            method = asked[0]
            self.asked.append(method)
            if method in self.refused:
                await stream.write(self._refusal)
                if not self._refusal:
                    stream.abort()
            elif method == b"GET":
                await stream.write(DOWNLOAD)
                while True:
                    await stream.write(bytes(65536))
                    await asyncio.sleep(0)
            while await stream.read():
                pass
        stream.abort()


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@contextlib.asynccontextmanager
async def running(far_side, certificate):
    """Yields `Gateway` as a pilot has it of `far_side`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        serving = asyncio.ensure_future(far_side.serve(listener))
        trust, port = Trust(ca_file=certificate), listener.getsockname()[1]
        gateway = Gateway(GatewayConnections("gateway.test", port, trust, lambda: "x"))
        gateway.connections.way._addresses = [(socket.AF_INET, listener.getsockname())]
        try:
            yield gateway
        finally:
            serving.cancel()
            await asyncio.wait([serving])


def measured(server_context, certificate, body, refused, refusal=FULL):
    """Runs `body(look, clock, far_side)`: `look` has the bandwidth looked at, and returns it when nothing measures."""

    async def main():
        far_side, clock, told = Measurable(server_context, refused, refusal), Clock(), []
        found = Bandwidth(None, lambda: told.append(found.rates_mbps), clock)
        async with running(far_side, certificate) as gateway:

            async def look():
                found.look(gateway)
                if found.task is not None:
                    await asyncio.wait([found.task])
                assert told == ([found.rates_mbps] if found.rates_mbps else [])
                return found.rates_mbps

            await body(look, clock, far_side)

    asyncio.run(asyncio.wait_for(main(), 90))


@pytest.mark.parametrize("refused", [b"GET", b"POST"])
@pytest.mark.parametrize("refusal", [FULL, b""])
def test_a_measurement_that_failed_is_made_again(server_context, certificate, refused, refusal):
    async def body(look, clock, far_side):
        assert await look() is None
        asked = len(far_side.asked)
        clock.now += FIRST_PAUSE_SECONDS - 1
        assert await look() is None
        assert len(far_side.asked) == asked
        far_side.refused = ()
        clock.now += 1
        rates = await look()
        assert rates is not None
        asked = len(far_side.asked)
        clock.now += LAST_PAUSE_SECONDS
        assert await look() == rates
        assert len(far_side.asked) == asked

    measured(server_context, certificate, body, (refused,), refusal)


def test_the_pauses_grow_up_to_an_hour(server_context, certificate):
    async def body(look, clock, far_side):
        asked_after = []
        await look()
        for minute in range(1, 60 * 5):
            clock.now += 60
            before = len(far_side.asked)
            assert await look() is None
            if len(far_side.asked) > before:
                asked_after.append(minute)
        assert asked_after == [1, 3, 7, 15, 31, 63, 123, 183, 243]

    measured(server_context, certificate, body, (b"GET",))


def test_an_engine_measures_until_it_knows(server_context, certificate, monkeypatch):
    monkeypatch.setattr(bandwidth, "FIRST_PAUSE_SECONDS", 0.01)

    async def main():
        far_side = Measurable(server_context, (b"GET",), FULL)
        known = asyncio.Event()

        def told(report):
            if far_side.asked:
                far_side.refused = ()
            if report.up and report.up_mbps is not None and report.down_mbps is not None:
                known.set()

        async with running(far_side, certificate) as gateway:
            working = asyncio.ensure_future(StreamEngine([Pool("stream", [Lone(gateway)], 0.1, 60)]).run(told))
            await known.wait()
            assert len(far_side.asked) > 2
            working.cancel()
            await asyncio.wait([working])

    asyncio.run(asyncio.wait_for(main(), 90))
