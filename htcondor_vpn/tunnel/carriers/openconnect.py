"""An AnyConnect server (ocserv, or another that openconnect speaks to) as the way out.

libopenconnect logs in and carries packets, in a process of its own (`openconnect_client`) with a socket of the node's
network on one side and a tun on the other. The tun lies in a namespace beside the inner one (`tun_namespace`), whose
sockets the flows go through. Tun and flows outlive that process: a new one that is given the same network goes on with
them, as after a server that was restarted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from htcondor_vpn.config_file import printable
from htcondor_vpn.errors import GatewayUnreachable, GatewayUntrusted, LoginRefused, VpnError
from htcondor_vpn.knob_values import is_address
from htcondor_vpn.tunnel.carrier import Address, Answer
from htcondor_vpn.tunnel.carriers.direct import DirectCarrier
from htcondor_vpn.tunnel.carriers.openconnect_network import Given, read_network
from htcondor_vpn.tunnel.carriers.openconnect_process import ClientProcess, Login
from htcondor_vpn.tunnel.carriers.server import Server, host_port
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace
from htcondor_vpn.wire.datagrams import DatagramPipe
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.stream import PlainStream

#: A login takes longer than a probe.
START_SECONDS = 20.0
_ADDRESS_SECONDS = 10.0
#: A server bans who tries in vain too often.
_REFUSED_SECONDS = 60.0
#: How long no probe is answered until the library's own attempts to reconnect are given up for a new login.
_STUCK_SECONDS = 12.0
#: How long everything is kept for the next probe: flows hang meanwhile, and go on if the network comes back.
_LINGER_SECONDS = 60.0
_TUN = "tun0"

log = logging.getLogger(__name__)


class OpenConnect:
    """See `Carrier`: the server at `host`:`port`. `name_servers` take the place of those that it names."""

    start_seconds = START_SECONDS

    def __init__(
        self, host: str, port: int, login: Login, name_servers: Sequence[tuple[str, int]], probe_seconds: float
    ) -> None:
        self.name, self._host, self._port = host_port(host, port), host, port
        self._request, self._pins = login.request(f"https://{self.name}/"), login.pins
        self._name_servers, self._probe_seconds = name_servers, probe_seconds
        self._life: asyncio.Task[None] | None = None
        self._connected: asyncio.Future[None] | None = None
        self._room: TunNamespace | None = None
        self._tun = -1
        self._given: Given | None = None
        self._direct: DirectCarrier | None = None
        self._transport, self._attached, self._expired = "", False, False
        self._good_at = float("-inf")
        self._refusal: LoginRefused | None = None
        self._refused_until = 0.0
        self._linger: asyncio.TimerHandle | None = None

    # Carrier

    async def open_flow(self, address: Address, port: int) -> tuple[PlainStream, bytes]:
        return await self._through().open_flow(address, port)

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        return await self._through().open_datagrams(address, port)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        return await self._through().echo(address, payload)

    async def ask_dns(self, query: bytes) -> bytes:
        return await self._through().ask_dns(query)

    async def probe(self) -> Answer:
        """Raises `LoginRefused` and `GatewayUntrusted` beside the usual."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        await self._up()
        answer = await self._through().probe()
        self._good_at = asyncio.get_running_loop().time()
        return replace(answer, transport=self._transport)

    async def lost(self) -> None:
        if self._life is None:
            return
        losses: set[asyncio.Future[None]] = {self._life}
        if self._room is not None:
            losses.add(asyncio.ensure_future(self._room.lost()))
        try:
            await asyncio.wait(losses, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for loss in losses - {self._life}:
                loss.cancel()

    def forget(self) -> None:
        """Keeps connection and tun for the next probe, unless it does not come soon."""
        loop = asyncio.get_running_loop()
        if self._direct is not None:
            self._direct.forget()
        if self._room is not None and self._room.gone:
            self._let_go()
        if self._life is not None and loop.time() - self._good_at > _STUCK_SECONDS:
            self._life.cancel()
        if self._linger is None:
            self._linger = loop.call_later(_LINGER_SECONDS, self._let_go)

    def _through(self) -> DirectCarrier:
        if self._direct is None:
            raise GatewayUnreachable(f"the VPN server {self.name} is not connected", "it is tried again")
        return self._direct

    # The connection

    async def _up(self) -> None:
        """Connects where that is not done yet; raises VpnError."""
        if self._refusal is not None and asyncio.get_running_loop().time() < self._refused_until:
            raise self._refusal
        if self._life is None or self._connected is None or self._life.done():
            self._connected = asyncio.get_running_loop().create_future()
            self._life = asyncio.ensure_future(self._live(self._connected))
        await asyncio.shield(self._connected)

    async def _live(self, connected: asyncio.Future[None]) -> None:
        """Runs the client to its end, or until cancelled; `connected` is done when it is, or has the reason why not."""
        why: VpnError = self._lost("it was given up")
        try:
            why = await self._run_client(connected)
            if self._expired:
                why = await self._run_client(connected)
        except (OSError, asyncio.TimeoutError) as error:
            why = self._lost(str(error) or f"no login within {START_SECONDS:g} s")
        except VpnError as error:
            why = error
        finally:
            if not connected.done():
                connected.set_exception(why)
                connected.exception()  # who has asked for it may be gone
        log.warning("%s", why)

    async def _run_client(self, connected: asyncio.Future[None]) -> VpnError:
        client = await ClientProcess.start()
        self._transport = "tls"
        try:
            with Deadline(START_SECONDS):
                address = await self._answering_address()
                client.tell({**self._request, "address": address, "pins": list(self._pins())})
                why = None
                while why is None and not self._attached:
                    why = await self._heed(await client.heard(), client)
            if why is None:
                connected.set_result(None)
            while why is None:
                why = await self._heed(await client.heard(), client)
            return why
        finally:
            self._attached = False
            await client.end()

    async def _answering_address(self) -> str | None:
        """Which of the addresses that the server's name stands for answers; None where that is not known or needed."""
        if is_address(self._host):
            return None
        try:
            with Deadline(_ADDRESS_SECONDS):
                sock = await Server("VPN server", self._host, self._port, "HTCONDOR_VPN_OPENCONNECT_SERVERS").dial()
        except (OSError, VpnError, asyncio.TimeoutError) as error:  # the library will say it in its own words
            log.debug("%s: %s", self.name, error)
            return None
        with sock:
            return str(sock.getpeername()[0])

    async def _heed(self, message: dict[str, Any] | None, client: ClientProcess) -> VpnError | None:
        """Does what a message of the client asks for; returns what is wrong where it was the last."""
        if message is None:
            return self._lost("the client was killed")
        if "network" in message:
            await self._attach(message, client)
        elif "transport" in message:
            self._transport = message["transport"]
            log.info("%s: packets travel by %s", self.name, self._transport.upper())
        elif "said" in message:
            log.info("%s: %s", self.name, printable(message["said"], 500))
        else:
            return self._ended(message)
        return None

    async def _attach(self, message: dict[str, Any], client: ClientProcess) -> None:
        """Gives the client the tun of the network that the server has given us: the one there is if it is the same."""
        try:
            given = read_network(message["network"])
        except ValueError as error:
            raise self._lost(f"the network that it gives us {printable(str(error), 200)}") from None
        if self._room is None or given != self._given:
            self._drop_tun()
            self._room = await TunNamespace.make()
            self._tun = await self._room.make_tun(_TUN)
            await self._room.configure(_TUN, given.config)
            servers = self._name_servers or [(server, 53) for server in given.name_servers]
            self._direct = DirectCarrier(
                self.name, self._room, servers, self._probe_seconds, families=given.families
            )
            self._given = given
        client.tell({}, [self._tun])
        self._request = {**self._request, "cookie": message["cookie"]}
        self._attached = True

    def _ended(self, message: dict[str, Any]) -> VpnError:
        ((kind, said),) = message.items()
        said = printable(said, 500)
        self._expired = kind == "expired" and self._request["cookie"] is not None
        if self._expired:
            self._request = {**self._request, "cookie": None}
        if kind == "untrusted":
            return GatewayUntrusted(
                f"the VPN server {self.name} is not the one that we trust: {said}; no credential was sent",
                "check HTCONDOR_VPN_GATEWAY_PIN, HTCONDOR_VPN_GATEWAY_PIN_FILE or HTCONDOR_VPN_GATEWAY_CA_FILE",
            )
        if kind == "refused":
            self._refusal = LoginRefused(
                f"the VPN server {self.name} does not let us in: {said}",
                "check HTCONDOR_VPN_OPENCONNECT_CREDENTIALS_FILE, or HTCONDOR_VPN_OPENCONNECT_CERTIFICATE_FILE",
            )
            self._refused_until = asyncio.get_running_loop().time() + _REFUSED_SECONDS
            return self._refusal
        return self._lost(said)

    def _lost(self, said: str) -> GatewayUnreachable:
        by_certificate = self._request["certificate"] is not None  # of one that it does not know it says nothing
        return GatewayUnreachable(
            f"the VPN server {self.name} is not connected: {said}",
            "check that it runs" + (", and knows HTCONDOR_VPN_OPENCONNECT_CERTIFICATE_FILE" if by_certificate else ""),
        )

    def _let_go(self) -> None:
        """Ends the connection, and every flow."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._life is not None:
            self._life.cancel()
        self._life = self._connected = None
        self._drop_tun()

    def _drop_tun(self) -> None:
        if self._direct is not None:
            self._direct.forget()
        if self._room is not None:
            self._room.close()
            os.close(self._tun)
        self._direct = self._room = self._given = None
