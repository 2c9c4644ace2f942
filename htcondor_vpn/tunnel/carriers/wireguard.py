"""WireGuard in user space, without a privilege: an unmodified wireguard-go, started, watched and ended by us.

It runs in a network namespace of its own (`tun_namespace`), where its tun device is. For its UDP sockets, which have to
be the node's, it asks us without knowing of it (`linux/seccomp.py`). While it is being started again, after its death
or a silence, the namespace and its addresses stay: connections go on where they were.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from htcondor_vpn.errors import GatewayNameError, GatewayUnreachable
from htcondor_vpn.linux.path_mtu import path_mtu
from htcondor_vpn.tunnel.carrier import Address, Answer
from htcondor_vpn.tunnel.carriers.direct import DirectCarrier
from htcondor_vpn.tunnel.carriers.server import host_port
from htcondor_vpn.tunnel.carriers.tun_namespace import TunConfig, TunNamespace
from htcondor_vpn.tunnel.carriers.wireguard_config import RemotePeer, WireguardConfig
from htcondor_vpn.tunnel.carriers.wireguard_process import WireguardProcess
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.wireguard import Peer

#: How long the first answer may take: a handshake that is lost is repeated after 5 s (the protocol's Rekey-Timeout).
START_SECONDS = 6.5
#: And starting the program itself, on a busy node.
_SET_UP_SECONDS = 16.0
_ASK_SECONDS = 2.0
#: How long one address of a server may be silent before the next one is tried: its name may have several, of which some
#: are of no use, as those of IPv6 where nothing passes by it.
_OTHERS_SECONDS = 2.5
_LINK = "wg0"

#: The headers of IP, UDP and WireGuard, and its authentication tag.
_OVERHEAD_BYTES = {4: 20 + 8 + 32, 6: 40 + 8 + 32}
_IPV6_LEAST_MTU, _LEAST_MTU = 1280, 576

log = logging.getLogger(__name__)


class WireguardCarrier(DirectCarrier):
    """See `Carrier`: the way out by the peers of `config`. Asks `name_servers`, which lie behind the tunnel."""

    def __init__(
        self, config: WireguardConfig, program: str, name_servers: Sequence[tuple[str, int]], probe_seconds: float
    ) -> None:
        self._tunnel = WireguardTunnel(config, program)
        super().__init__(
            self._tunnel.name, self._tunnel, name_servers, probe_seconds, families=config.families,
            start_seconds=START_SECONDS, lost=self._tunnel.lost, forget=self._tunnel.forget,
        )  # fmt: skip
        self.start_seconds = START_SECONDS + _SET_UP_SECONDS

    async def probe(self) -> Answer:
        await self._tunnel.start()  # which does not count for how long the name servers take
        await self._tunnel.fit()
        probing = asyncio.ensure_future(super().probe())
        try:
            await asyncio.wait([probing], timeout=_OTHERS_SECONDS if self._tunnel.has_others else None)
            if probing.done() or await self._tunnel.spoken():
                answer = await probing
                self._tunnel.answered()
                return answer
        except GatewayUnreachable:
            if await self._tunnel.spoken():
                raise
        finally:
            probing.cancel()
        raise GatewayUnreachable(
            f"the WireGuard server {self.name} does not answer: there was no handshake{self._tunnel.elsewhere()}",
            "check that the keys of both sides match, and that this node may send UDP to it",
        )


class WireguardTunnel:
    """The `SocketSource` behind the tun device; wireguard-go runs from the first use on, until it is forgotten."""

    def __init__(self, config: WireguardConfig, program: str) -> None:
        self.name = host_port(*config.peers[0].endpoint)
        self._config, self._program = config, program
        self._namespace: TunNamespace | None = None
        self._running: WireguardProcess | None = None
        self._starting: asyncio.Future[None] | None = None
        self._peers: list[Peer] = []
        self._known: dict[str, list[Address]] = {}  # what the peers' hosts stand for
        self._silent: set[Address] = set()  # those of them that were tried in vain
        self._good: set[Address] = set()
        self._mtu = config.mtu

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """See `SocketSource`."""
        await self.start()
        if self._namespace is None:
            raise GatewayUnreachable(f"WireGuard to {self.name} was given up")
        return await self._namespace.open(family, kind, protocol)

    async def start(self) -> None:
        """Starts wireguard-go where it does not run; raises VpnError or OSError."""
        if self._running is not None and not self._running.ended.done():
            return
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
            self._starting.add_done_callback(self._started)
        await asyncio.shield(self._starting)

    def _started(self, done: asyncio.Future[None]) -> None:
        if self._starting is done:
            self._starting = None
        if not done.cancelled():
            done.exception()  # who has asked for it may be gone

    async def _start(self) -> None:
        self._end()
        peers = await asyncio.gather(*map(self._located, self._config.peers))
        namespace = self._namespace
        if namespace is None:
            namespace = self._namespace = await TunNamespace.make()
        self._running = WireguardProcess(await namespace.start_wireguard_go(self._program, _LINK), self.name)
        self._peers, self._mtu = peers, self._config.mtu
        try:
            await self._running.device.configure(self._config.private_key, peers, self._config.listen_port)
            await namespace.configure(_LINK, tun_config(self._config))
        except BaseException:
            self._end()
            raise
        log.info("WireGuard to %s runs", self.name)

    async def _located(self, peer: RemotePeer) -> Peer:
        """Looks up where a peer is: where it was found last, or else at an address that was not tried yet.

        Raises `GatewayNameError`.
        """
        host, port = peer.endpoint
        found = self._known[host] = await _addresses(host, port)
        untried = [address for address in found if address not in self._silent]
        address = min(untried or found, key=lambda address: address not in self._good)
        return Peer(peer.public_key, peer.allowed_ips, peer.preshared_key, (address, port), peer.keepalive_seconds)

    @property
    def _used(self) -> set[Address]:
        return {peer.endpoint[0] for peer in self._peers if peer.endpoint is not None}

    @property
    def has_others(self) -> bool:
        """Whether there are addresses of the peers' names that could be tried instead."""
        return any(set(found) - self._used for found in self._known.values())

    def answered(self) -> None:
        """Takes note of addresses that are good."""
        self._good, self._silent = self._used, set()

    def elsewhere(self) -> str:
        """Has others tried at the next start, and tells where it was in vain, if there are others."""
        if not self.has_others:
            return ""
        self._silent |= self._used
        if all(self._silent.issuperset(found) for found in self._known.values()):
            self._silent = set()  # all over again
        return f" at {', '.join(sorted(map(str, self._used)))}"

    async def fit(self) -> None:
        """Makes the tunnel's packets as small as the path to the peers wants them, or as large as they may be again.

        WireGuard's packets go out many at a time (UDP_SEGMENT), and those that do not fit would be lost together.
        """
        addresses = [peer.endpoint[0] for peer in self._peers if peer.endpoint is not None]
        mtu = fitting_mtu(self._config, [(address, path_mtu(address)) for address in addresses])
        if mtu != self._mtu and self._namespace is not None:
            await self._namespace.set_mtu(_LINK, mtu)
            log.info("packets to %s may have %d bytes now, instead of %d", self.name, mtu, self._mtu)
            self._mtu = mtu

    async def spoken(self) -> bool:
        """Whether the other side has ever proved to have its key, since wireguard-go was started."""
        try:
            assert self._running is not None
            with Deadline(_ASK_SECONDS):
                return any(peer.last_handshake for peer in await self._running.device.peers())
        except (OSError, asyncio.TimeoutError):
            return False

    async def lost(self) -> None:
        """As `Carrier.lost`."""
        if self._running is not None:
            await asyncio.shield(self._running.ended)

    def forget(self) -> None:
        """Ends wireguard-go. Its namespace is kept for the connections that there are."""
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        self._end()
        if self._namespace is not None and not self._namespace.in_use:
            self._namespace.close()
            self._namespace = None

    def _end(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None
        if self._namespace is not None and self._namespace.is_lost:
            self._namespace.close()
            self._namespace = None


def tun_config(config: WireguardConfig) -> TunConfig:
    """What the tun device gets: all that any peer is allowed is routed into it, as wg-quick(8) does."""
    routes = dict.fromkeys(network for peer in config.peers for network in peer.allowed_ips)
    return TunConfig(config.mtu, tuple(interface.ip for interface in config.addresses), tuple(routes))


def fitting_mtu(config: WireguardConfig, paths: Iterable[tuple[Address, int | None]]) -> int:
    """The MTU of the tun, by those of the paths to the peers: what WireGuard adds to a packet has to fit as well.

    Never less than IPv6 needs (RFC 8200, section 5), if there is any in the tunnel.
    """
    least = _IPV6_LEAST_MTU if "ipv6" in config.families else _LEAST_MTU
    fitting = [mtu - _OVERHEAD_BYTES[address.version] for address, mtu in paths if mtu is not None]
    return max(min(config.mtu, least), min([config.mtu, *fitting]))


async def _addresses(host: str, port: int) -> list[Address]:
    """Looks up what a host's name stands for; raises `GatewayNameError`."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise GatewayNameError(
            f"the WireGuard server's name {host} does not resolve: {error.strerror}",
            "check Endpoint in the WireGuard configuration, or put an address there",
        ) from error
    return list(dict.fromkeys(ip_address(each[4][0]) for each in found))
