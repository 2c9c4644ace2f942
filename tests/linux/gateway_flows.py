"""Flows from the node through a real gateway to an echo server in the world, all made by the test's own process."""

import asyncio
import contextlib
import json
import socket
import time
from pathlib import Path

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.wire.http import HttpConnection
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust, read_pins

ECHO = (str(plan.WORLD["http"].v4), 7007)
PATIENCE_SECONDS = 60


class OperatedGateway(SiteGateway):
    """A gateway of two workers whose operator the test is."""

    def __init__(self, site, folder, **knobs):
        file = folder / "gateway.conf"
        knobs = {"WORKERS": 2, **knobs}
        file.write_text("".join(f"HTCONDOR_VPN_GATEWAY_{name} = {value}\n" for name, value in knobs.items()))
        super().__init__(site.dmz, folder, "--config", str(file))

    def operate(self, *words, check=True):
        return self.host.run(vpn_command("gateway", *words, "--dir", str(self.state_folder)), check=check)

    def status(self):
        return json.loads(self.operate("status", "--json").stdout)

    def workers(self):
        return [worker["pid"] for worker in self.status()["workers"]]

    def children(self):
        """The workers, and the ledger's process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def ledger(self, by="outcome"):
        done = self.operate("ledger", "--by", by, "--json", check=False)
        assert done.returncode == 0 or "cannot be read" in done.stderr  # it is being made
        return json.loads(done.stdout or "[]")


class Refused(Exception):
    """A gateway's answer to a CONNECT that is not a 200: `status`."""

    def __init__(self, status):
        super().__init__(f"the gateway answered {status}")
        self.status = status


class Client:
    """A pilot's side, on the node. `gateway` is a `SiteGateway`."""

    def __init__(self, site, gateway):
        self.site, self.gateway = site, gateway
        self._opened = []
        self.token = gateway.token_file.read_text().strip()
        self.trust = Trust(pins=read_pins(gateway.pin_file))

    async def connect(self):
        """An HTTP connection to the gateway."""
        sock = self.site.node.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        host, port = self.gateway.endpoints[0].rsplit(":", 1)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        except BaseException:
            sock.close()
            raise
        stream = await TlsStream.client(sock, self.trust.context, None)
        self._opened.append(stream)
        return HttpConnection(stream)

    def close(self):
        """Cuts what is still open."""
        for stream in self._opened:
            stream.abort()

    async def ask(self, method, target, token=None):
        """One request on a connection of its own: connection and answer."""
        connection = await self.connect()
        name = "Proxy-Authorization" if method == "CONNECT" else "Authorization"
        headers = [("Host", "gateway"), (name, f"Bearer {token or self.token}")]
        return connection, await connection.exchange(method, target, headers)

    async def flow(self, to=ECHO, token=None):
        """A flow's stream; raises `Refused`, or OSError."""
        connection, answer = await self.ask("CONNECT", f"{to[0]}:{to[1]}", token)
        if answer.status != 200:
            connection.stream.abort()
            raise Refused(answer.status)
        return connection.stream


def run(body):
    asyncio.run(asyncio.wait_for(body, 2 * PATIENCE_SECONDS))


async def echoes(stream, data=b"x" * 1000):
    """Sends through a flow and takes it back."""
    await stream.write(data)
    got = b""
    while len(got) < len(data):
        piece = await stream.read()
        assert piece, "the flow ended"
        got += piece
    assert got == data
    return True


async def until(condition, seconds=PATIENCE_SECONDS):
    """Waits for what no event announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def echo_server(site, address=ECHO, serve=None):
    """Serves echoes in the world, in this loop; or what the coroutine function `serve` does with a socket."""
    loop, tasks, socks = asyncio.get_running_loop(), set(), []
    with site.world.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
        listener.setblocking(False)

        def accept():  # loop.sock_accept loses a connection when it is cancelled just then
            sock, _ = listener.accept()
            sock.setblocking(False)
            socks.append(sock)
            tasks.add(loop.create_task((serve or _echo)(sock)))

        loop.add_reader(listener, accept)
        try:
            yield
        finally:
            loop.remove_reader(listener)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for sock in socks:
                sock.close()


async def _echo(sock):
    loop = asyncio.get_running_loop()
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        while data := await loop.sock_recv(sock, 65536):
            await loop.sock_sendall(sock, data)


async def source(sock):
    """Sends without end."""
    loop = asyncio.get_running_loop()
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        while True:
            await loop.sock_sendall(sock, bytes(65536))


@contextlib.contextmanager
def operated(site, folder):
    """Yields what starts a gateway: `start(CONNECTIONS=10)` returns it, and a pilot's side."""
    pairs = []

    def start(**knobs):
        gateway = OperatedGateway(site, folder, **knobs).__enter__()
        pairs.append((gateway, Client(site, gateway)))
        return pairs[-1]

    try:
        yield start
    finally:
        for gateway, client in pairs:
            client.close()
            gateway.stop()
