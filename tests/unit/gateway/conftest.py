"""A gateway on loopback, and a pilot's side to talk to it with; both are the real ones.

Tests may be coroutines: each runs in a loop of its own, and within a deadline.
"""

import asyncio
import contextlib
import inspect
import itertools
import logging
import socket
import ssl
from dataclasses import replace

import pytest
from signing import Authority

from htcondor_vpn.gateway.operation.listening import listen
from htcondor_vpn.gateway.operation.server import Gateway
from htcondor_vpn.gateway.serving.roster import Limits
from htcondor_vpn.gateway.trust.credentials import own_credentials
from htcondor_vpn.gateway.trust.deny_list import DenyList
from htcondor_vpn.gateway.trust.folder import open_folder
from htcondor_vpn.gateway.trust.gatekeeper import Gatekeeper
from htcondor_vpn.gateway.trust.leases import Leases
from htcondor_vpn.gateway.trust.renewal import ServerTls
from htcondor_vpn.gateway.trust.tokens import TokenStore
from htcondor_vpn.wire.http import HttpConnection
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust, pin_of

DEADLINE_SECONDS = 90


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), DEADLINE_SECONDS))
    return True


@pytest.fixture(scope="module")
def ca():
    """Who vouches for pilots' certificates."""
    return Authority()


@pytest.fixture
def ca_file(ca, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(ca.pem)
    return path


class LoopbackOnly:
    """The far sides of tests are on loopback, which the real policy refuses; 127.0.0.9 stands for what is forbidden."""

    def refusal(self, address, port):
        return None if address.is_loopback and str(address) != "127.0.0.9" else "not for tests"


class BothFamilies:
    """The machine that runs the tests may have no route to anywhere, nor does the sandbox."""

    def routed(self):
        return ["ipv4", "ipv6"]


class Running:
    """A gateway that serves on loopback, and a token that it accepts."""

    def __init__(self, folder):
        self.folder = open_folder(folder)
        self.credentials = own_credentials(self.folder, ["localhost", "127.0.0.1"])
        self.tokens = TokenStore(self.folder)
        self.token = self.tokens.add("alice")
        self.deny_list, self.leases = DenyList(self.folder), Leases(self.folder)
        self.trust = Trust(pins=(self.credentials.pin,))
        self._opened = []

    async def start(self, limits, policy, authenticators=(), client_ca=None, **options):
        keeper = Gatekeeper([self.tokens, *authenticators], self.deny_list, self.leases)
        self.gateway = Gateway(ServerTls(self.credentials, client_ca), keeper, policy, limits, **options)
        (self.listener,) = listen([("127.0.0.1", 0)])
        self.port = self.listener.getsockname()[1]
        self.serving = asyncio.ensure_future(self.gateway.serve([self.listener]))

    async def stop(self):
        for stream in self._opened:
            stream.abort()
        self.gateway.stop()
        self.gateway.stop()
        await self.serving
        for store in (self.tokens, self.deny_list, self.leases):
            store.close()

    async def raw(self):
        """A TCP connection to the gateway."""
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        return sock

    async def stream(self):
        """A TLS connection to the gateway, which has the pinned key."""
        stream = await TlsStream.client(await self.raw(), self.trust.context, None)
        self.trust.check(stream, "the test's gateway")
        self._opened.append(stream)
        return stream

    async def pin(self):
        """The pin of the key with which new connections are served."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = await TlsStream.client(await self.raw(), context, None)
        stream.abort()
        return pin_of(stream.peer_certificate)

    async def client(self):
        return HttpConnection(await self.stream())

    async def ask(self, client, method, target, body=b"", headers=(), token=None):
        """One request with the token in the header that this method needs."""
        name = "Proxy-Authorization" if method == "CONNECT" else "Authorization"
        fields = [("Host", "gateway"), (name, f"Bearer {token or self.token}"), *headers]
        return await client.exchange(method, target, fields, body)

    async def flow(self, port, token=None):
        """A flow to a port on loopback; the stream carries it."""
        client = await self.client()
        answer = await self.ask(client, "CONNECT", f"127.0.0.1:{port}", token=token)
        assert answer.status == 200
        assert client.early_bytes == b""
        return client.stream


@pytest.fixture
def running(tmp_path):
    """Starts a gateway: `async with running() as gateway`. Options: limits as keywords, policy, resolver, …"""
    numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def start(
        *, policy=None, resolver=None, families=None, authenticators=(), client_ca=None, shares=None, allowances=None,
        seats=None, column=0, **limits
    ):
        gateway = Running(tmp_path / f"gateway-{next(numbers)}")
        families = families or BothFamilies()
        options = {"resolver": resolver, "families": families, "authenticators": authenticators, "client_ca": client_ca}
        options.update(shares=shares, allowances=allowances, seats=seats, column=column)
        await gateway.start(replace(Limits(grace_seconds=5), **limits), policy or LoopbackOnly(), **options)
        try:
            yield gateway
        finally:
            await gateway.stop()

    return start


@pytest.fixture
def far_side():
    """Starts a TCP server: `async with far_side(handler) as port`; `handler(sock)` is a coroutine function."""

    @contextlib.asynccontextmanager
    async def start(handler):
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            listener.setblocking(False)
            tasks = set()

            async def serve(sock):
                with sock:
                    await handler(sock)

            async def accept():
                while True:
                    sock, _ = await loop.sock_accept(listener)
                    sock.setblocking(False)
                    tasks.add(asyncio.ensure_future(serve(sock)))

            tasks.add(asyncio.ensure_future(accept()))
            try:
                yield listener.getsockname()[1]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return start


async def echo(sock):
    """Sends back what comes, and ends when it ends."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(sock, 65536):
            await loop.sock_sendall(sock, data)


@pytest.fixture
def echo_port(far_side):
    return lambda: far_side(echo)


@pytest.fixture
def ipv6():
    """For tests that need IPv6 on loopback, which not every machine has."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback: {error}")


@pytest.fixture
def flow_lines(caplog):
    """Returns the log's lines about flows that have ended."""
    caplog.set_level(logging.DEBUG)
    return lambda: [record.getMessage() for record in caplog.records if record.getMessage().startswith("flow ")]
