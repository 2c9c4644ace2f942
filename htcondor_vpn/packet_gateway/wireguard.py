"""A WireGuard server, for the engine `wireguard` and every other client of that protocol.

As an ordinary user it has wireguard-go run in a namespace of its own, where packets end: what comes out of the tun is
caught there, as in a pilot's own namespace, and goes on from this host as connections and datagrams of this process. As
root its tun is this host's, and the kernel forwards what pilots send, in this host's name (`kernel_nat`). In both the
UDP socket at which pilots arrive is this host's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TypeVar

from htcondor_vpn.addresses import JOB_LINK, PILOT_V4, PILOT_V6, WIREGUARD_V4, WIREGUARD_V6
from htcondor_vpn.errors import ListenError, VpnError
from htcondor_vpn.gateway.kernel_nat import KernelNat, Pilots
from htcondor_vpn.gateway.operation.listening import raise_descriptor_limit
from htcondor_vpn.gateway.trust import reserve
from htcondor_vpn.gateway.trust.folder import open_folder
from htcondor_vpn.gateway.wireguard_pilots import WireguardPilot, WireguardPilots, public_key, server_key
from htcondor_vpn.knobs import PREFIX
from htcondor_vpn.linux import wireguard_go
from htcondor_vpn.packet_gateway.host_resolver import HostResolver
from htcondor_vpn.packet_gateway.inner import caught, host_engine
from htcondor_vpn.packet_gateway.operation import Operation, again
from htcondor_vpn.packet_gateway.pilots_engine import PilotsEngine
from htcondor_vpn.packet_gateway.sessions import Reading
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.carriers.tun_namespace import TunConfig, TunNamespace
from htcondor_vpn.tunnel.carriers.wireguard_config import DEFAULT_MTU
from htcondor_vpn.tunnel.carriers.wireguard_process import WireguardProcess
from htcondor_vpn.tunnel.catching.catcher import find_nft
from htcondor_vpn.tunnel.engine import EngineReport
from htcondor_vpn.wire.wireguard import Device, PeerState, key_text

DEFAULT_PORT = 51820

#: To the catcher it is a job's link, whose pilots may ask the resolver.
_LINK = f"{JOB_LINK}-wg"
_TUN = TunConfig(DEFAULT_MTU, (), (WIREGUARD_V4, WIREGUARD_V6))
_RESOLVER = (PILOT_V4, PILOT_V6)
_HOST_TUN = replace(_TUN, addresses=_RESOLVER)

#: How often the database is asked whether it changed: how long a revoked pilot's packets are taken.
_LOOK_SECONDS = 1.0
_RESTART_SECONDS = 0.5
#: How long keys are good after a handshake (REJECT_AFTER_TIME of WireGuard's white paper, 6.1).
_SESSION_SECONDS = 180.0
#: How long pilots may take to shake hands with a wireguard-go that was started again.
_RESTARTED_SECONDS = 30.0
#: After so many seconds without an answer wireguard-go is killed. They are counted one by one: when a whole gateway was
#: stopped and goes on, nobody has been silent for long.
_SILENT_SECONDS = 10

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


def endpoint(settings: Settings) -> tuple[str, int]:
    """Where pilots reach this gateway: host and UDP port."""
    found: tuple[str, int] | None = settings.gateway_wireguard_endpoint
    return found or (socket.getfqdn(), DEFAULT_PORT)


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Runs the gateway until SIGTERM or SIGINT; raises `VpnError` if it cannot start, or its namespace is lost.

    `announce` gets a line for the port, the public key, and `ready`.
    """
    program = wireguard_go.find(settings.wireguard_go, f"{PREFIX}WIREGUARD_GO")
    find_nft()
    folder = open_folder(settings.gateway_dir)
    reserve.keep(folder)
    private_key = server_key(folder)
    port = endpoint(settings)[1]
    _must_be_free(port)
    raise_descriptor_limit(settings.gateway_connections)
    with WireguardPilots(folder) as pilots:
        if not pilots.list():
            log.warning("there are no pilots yet: `htcondor-vpn gateway wireguard add NAME` makes one")

        async def serve() -> None:
            with ExitStack() as exits:
                operation = Operation(settings, "wireguard")  # before there is anything to take back
                exits.callback(operation.close)
                make = _host_server if os.geteuid() == 0 else _own_server
                server = await make(settings, program, pilots, operation, exits)
                exits.callback(server.close)
                await server.start(private_key, port)
                announce(f"listening on UDP port {port}")
                announce(key_text(public_key(private_key)))
                operation.ready(server.shut)
                announce("ready")
                await server.serve()

        asyncio.run(serve())


async def _own_server(
    settings: Settings, program: str, pilots: WireguardPilots, operation: Operation, exits: ExitStack
) -> _WireguardServer:
    """Makes a namespace and begins to serve what will be caught there; raises `VpnError` or OSError."""
    engine = host_engine(settings)
    namespace = await TunNamespace.make()
    exits.callback(namespace.close)
    engine.serve(caught(namespace, find_nft(), settings.hold_connects))
    return _WireguardServer(program, pilots, operation, namespace, _TUN, engine)


async def _host_server(
    settings: Settings, program: str, pilots: WireguardPilots, operation: Operation, exits: ExitStack
) -> _WireguardServer:
    """Has this host's kernel forward what will come from the tun; raises `VpnError` or OSError."""
    links = Pilots("wireguard", _LINK, (WIREGUARD_V4, WIREGUARD_V6), resolver=_RESOLVER)
    exits.enter_context(KernelNat(links, settings.gateway_allow, settings.gateway_deny))
    room = await TunNamespace.make(on_host=True)
    exits.callback(room.close)
    return _WireguardServer(program, pilots, operation, room, _HOST_TUN)


class _WireguardServer:
    """wireguard-go, whose tun is in `namespace` and is set up as `tun`; and the `engine` that serves what is caught.

    Without an engine it is the kernel that forwards what comes.
    """

    def __init__(
        self,
        program: str,
        pilots: WireguardPilots,
        operation: Operation,
        namespace: TunNamespace,
        tun: TunConfig,
        engine: PilotsEngine | None = None,
    ) -> None:
        self._program, self._pilots, self._operation = program, pilots, operation
        self._namespace, self._tun, self._engine = namespace, tun, engine
        self._resolver: HostResolver | None = None
        self._process: WireguardProcess | None = None
        self._known: dict[bytes, WireguardPilot] = {}
        self._peers: set[bytes] = set()  # those of them that the device takes
        self._handshakes: dict[bytes, tuple[float, float]] = {}  # the last ones: as it tells them, and when we saw that
        self._restarted_until = 0.0
        self._is_shut = False
        self._turn = asyncio.Lock()  # of those that tell wireguard-go, or ask it

    async def start(self, private_key: bytes, port: int) -> None:
        """Starts wireguard-go with its key, at its port, for the pilots that there are; raises `VpnError`, OSError."""
        self._private_key, self._port = private_key, port
        async with self._turn:
            await self._start()

    async def _start(self) -> None:
        self._process = WireguardProcess(await self._namespace.start_wireguard_go(self._program, _LINK), "pilots")
        try:
            await self._configure()
        except BaseException:
            self._end()
            raise

    async def _configure(self) -> None:
        self._pilots.changed()
        self._known = {pilot.public_key: pilot for pilot in self._pilots.list()}
        self._tell_engine()
        self._peers = self._admitted()
        peers = [self._known[key].peer() for key in self._peers]
        await self._answered(self._device.configure(self._private_key, peers, self._port))
        await self._namespace.configure(_LINK, self._tun)
        if self._tun.addresses and self._resolver is None:
            self._resolver = HostResolver(self._tun.addresses)

    def _tell_engine(self) -> None:
        if self._engine is not None:
            self._engine.know(self._known.values())

    async def shut(self) -> None:
        """Counts the sessions that there are; when it returns, nobody else can shake hands any more."""
        while True:
            try:
                async with self._turn:
                    await self._count()
                    self._is_shut = True
                    await self._tell_device()
                return
            except OSError:  # it has died, and is being started again
                await asyncio.sleep(_RESTART_SECONDS)

    def _admitted(self) -> set[bytes]:
        """The keys of those that may shake hands: all, unless it is shut."""
        if not self._is_shut:
            return set(self._known)
        return {key for key in self._known if key in self._operation.sessions}

    async def serve(self) -> None:
        """Serves until it is told to end; raises `VpnError` when the namespace is lost."""
        works = [self._keep_running(), self._keep_pilots(), self._namespace.lost()]
        if self._engine is None:
            await self._operation.serve(works)
        else:
            await self._operation.serve([*works, self._engine.run(_tell)], last=self._engine.finish)

    async def _keep_running(self) -> None:
        """Starts wireguard-go again when it dies; what is open stays open."""
        while True:
            assert self._process is not None
            await asyncio.shield(self._process.ended)
            log.error("wireguard-go died and is started again")
            self._end()
            await again(lambda: self.start(self._private_key, self._port), _RESTART_SECONDS)
            self._restarted_until = time.monotonic() + _RESTARTED_SECONDS

    async def _keep_pilots(self) -> None:
        """Tells wireguard-go of pilots that were added or revoked, and asks it about their sessions."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if self._pilots.changed():
                    now = {pilot.public_key: pilot for pilot in self._pilots.list()}
                    for key in self._known.keys() - now.keys():
                        log.info("pilot=%s is revoked", self._known[key].name)
                    self._known = now
                    self._tell_engine()
            except VpnError as error:
                log.error("%s", error)
            with suppress(OSError):  # it has died, and will be told everything
                async with self._turn:
                    await self._tell_device()
                    await self._count()

    async def _tell_device(self) -> None:
        admitted, device = self._admitted(), self._device
        for key in self._peers - admitted:
            await self._answered(device.remove(key))
        for key in admitted - self._peers:
            await self._answered(device.add(self._known[key].peer()))
        self._peers = admitted

    async def _answered(self, asking: Awaitable[Answer]) -> Answer:
        """Returns what wireguard-go answers; kills it if it does not, being stopped or stuck, and raises OSError."""
        task = asyncio.ensure_future(asking)
        try:
            for _ in range(_SILENT_SECONDS):
                done, _pending = await asyncio.wait([task], timeout=1.0)
                if done:
                    break
            else:
                log.error("wireguard-go is stopped or stuck, and killed")
                if self._process is not None:
                    self._process.kill()
            return await task
        finally:
            task.cancel()

    async def _count(self) -> None:
        readings = []
        for state in await self._answered(self._device.peers()):
            if (pilot := self._known.get(state.public_key)) is not None:
                address = str(pilot.addresses[0])
                # One that was just started anew knows of no handshake yet.
                restarted = time.monotonic() < self._restarted_until and state.public_key in self._operation.sessions
                live, source = self._has_keys(state) or restarted, state.endpoint or "-:0"
                both = state.received_bytes, state.sent_bytes
                readings.append(Reading(pilot.public_key, pilot.name, source, address, *both, live))
        self._operation.sessions.told(readings, {pilot.name for pilot in self._known.values()})

    def _has_keys(self, state: PeerState) -> bool:
        """Whether it has shaken hands lately: by when we saw that, since the clock by which it is told may jump."""
        told, seen = self._handshakes.get(state.public_key, (0.0, 0.0))
        if state.last_handshake != told:
            seen = time.monotonic()
            self._handshakes[state.public_key] = state.last_handshake, seen
        return state.last_handshake > 0 and time.monotonic() - seen < _SESSION_SECONDS

    @property
    def _device(self) -> Device:
        """That of the wireguard-go that runs; raises ConnectionResetError while none does."""
        if self._process is None:
            raise ConnectionResetError("wireguard-go is being started again")
        return self._process.device

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None

    def close(self) -> None:
        if self._resolver is not None:
            self._resolver.close()
        self._end()


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
