"""A WireGuard server of an ordinary user: wireguard-go in a namespace of its own, where its pilots' packets end.

What comes out of the tun is caught there as in a pilot's own namespace, and goes on from this host as connections and
datagrams of this process: nothing is forwarded, and no address is translated. The UDP socket at which pilots arrive is
this host's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from htcondor_vpn.addresses import JOB_LINK, WIREGUARD_V4, WIREGUARD_V6
from htcondor_vpn.errors import ListenError, NamespacesUnavailable, VpnError
from htcondor_vpn.gateway.operation.listening import raise_descriptor_limit
from htcondor_vpn.gateway.trust.folder import open_folder
from htcondor_vpn.gateway.wireguard_pilots import WireguardPilot, WireguardPilots, public_key, server_key
from htcondor_vpn.knobs import PREFIX
from htcondor_vpn.linux import wireguard_go
from htcondor_vpn.packet_gateway.inner import caught, host_engine
from htcondor_vpn.packet_gateway.pilots_engine import PilotsEngine
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.carriers.tun_namespace import TunConfig, TunNamespace
from htcondor_vpn.tunnel.carriers.wireguard_config import DEFAULT_MTU
from htcondor_vpn.tunnel.carriers.wireguard_process import WireguardProcess
from htcondor_vpn.tunnel.catching.catcher import find_nft
from htcondor_vpn.tunnel.engine import EngineReport
from htcondor_vpn.wire.wireguard import key_text

DEFAULT_PORT = 51820

#: To the catcher it is a job's link, whose pilots may ask the resolver.
_LINK = f"{JOB_LINK}-wg"
_TUN = TunConfig(DEFAULT_MTU, (), (WIREGUARD_V4, WIREGUARD_V6))

#: How often the database is asked whether it changed: how long a revoked pilot's packets are taken.
_LOOK_SECONDS = 1.0
_RESTART_SECONDS = 0.5

log = logging.getLogger(__name__)


def endpoint(settings: Settings) -> tuple[str, int]:
    """Where pilots reach this gateway: host and UDP port."""
    found: tuple[str, int] | None = settings.gateway_wireguard_endpoint
    return found or (socket.getfqdn(), DEFAULT_PORT)


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Runs the gateway until SIGTERM or SIGINT; raises `VpnError` if it cannot start, or its namespace is lost.

    `announce` gets a line for the port, the public key, and `ready`.
    """
    program, nft = wireguard_go.find(settings.wireguard_go, f"{PREFIX}WIREGUARD_GO"), find_nft()
    folder = open_folder(settings.gateway_dir)
    private_key = server_key(folder)
    port = endpoint(settings)[1]
    _must_be_free(port)
    raise_descriptor_limit(settings.gateway_connections)
    with WireguardPilots(folder) as pilots:
        if not pilots.list():
            log.warning("there are no pilots yet: `htcondor-vpn gateway wireguard add NAME` makes one")

        async def serve() -> None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            server = await _Server.make(settings, program, nft, pilots)
            try:
                await server.start(private_key, port)
                announce(f"listening on UDP port {port}")
                announce(key_text(public_key(private_key)))
                announce("ready")
                await server.serve(stop)
            finally:
                server.close()

        asyncio.run(serve())


class _Server:
    """The namespace, the engine that serves what is caught there, and wireguard-go."""

    def __init__(self, program: str, pilots: WireguardPilots, namespace: TunNamespace, engine: PilotsEngine) -> None:
        self._program, self._pilots = program, pilots
        self._namespace, self._engine = namespace, engine
        self._process: WireguardProcess | None = None
        self._known: dict[bytes, WireguardPilot] = {}

    @classmethod
    async def make(cls, settings: Settings, program: str, nft: str, pilots: WireguardPilots) -> _Server:
        """Makes the namespace and begins to serve what will be caught there; raises `VpnError` or OSError."""
        engine = host_engine(settings)
        namespace = await TunNamespace.make()
        try:
            engine.serve(caught(namespace, nft, settings.hold_connects))
        except BaseException:
            namespace.close()
            raise
        return cls(program, pilots, namespace, engine)

    async def start(self, private_key: bytes, port: int) -> None:
        """Starts wireguard-go with its key, at its port, for the pilots that there are; raises `VpnError`, OSError."""
        self._private_key, self._port = private_key, port
        process = WireguardProcess(await self._namespace.start_wireguard_go(self._program, _LINK), "pilots")
        self._process = process
        self._pilots.changed()
        self._known = {pilot.public_key: pilot for pilot in self._pilots.list()}
        self._engine.know(self._known.values())
        await process.device.configure(private_key, [pilot.peer() for pilot in self._known.values()], port)
        await self._namespace.configure(_LINK, _TUN)

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until `stop`; raises `VpnError` when the namespace is lost."""
        stopped = asyncio.ensure_future(stop.wait())
        tasks = [asyncio.ensure_future(work) for work in (
            self._engine.run(_tell), self._keep_running(), self._keep_pilots(), self._namespace.lost(),
        )]  # fmt: skip
        try:
            futures: list[asyncio.Future[Any]] = [stopped, *tasks]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
                    raise NamespacesUnavailable("the gateway's namespace was lost", "start it again")
            await self._engine.finish()
        finally:
            stopped.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(stopped, *tasks, return_exceptions=True)

    async def _keep_running(self) -> None:
        """Starts wireguard-go again when it dies; what is open stays open."""
        while True:
            assert self._process is not None
            await asyncio.shield(self._process.ended)
            log.error("wireguard-go died and is started again")
            self._process.end()
            await asyncio.sleep(_RESTART_SECONDS)
            await self.start(self._private_key, self._port)

    async def _keep_pilots(self) -> None:
        """Tells wireguard-go of pilots that were added or revoked."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if not self._pilots.changed():
                    continue
                now = {pilot.public_key: pilot for pilot in self._pilots.list()}
            except VpnError as error:
                log.error("%s", error)
                continue
            assert self._process is not None
            with suppress(OSError):  # it has died, and will be told everything
                for key in self._known.keys() - now.keys():
                    await self._process.device.remove(key)
                    log.info("pilot=%s is revoked", self._known[key].name)
                for key in now.keys() - self._known.keys():
                    await self._process.device.add(now[key].peer())
                self._known = now
                self._engine.know(now.values())

    def close(self) -> None:
        if self._process is not None:
            self._process.end()
        self._namespace.close()


def _must_be_free(port: int) -> None:
    """Raises `ListenError`: wireguard-go itself would only write it into its log."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("", port))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
            raise ListenError(
                f"cannot listen on UDP port {port}: {os.strerror(error.errno or 0)}",
                f"choose another one in {PREFIX}GATEWAY_WIREGUARD_ENDPOINT",
            ) from error


def _tell(report: EngineReport) -> None:
    if not report.up:
        log.warning("%s", report.cause)
