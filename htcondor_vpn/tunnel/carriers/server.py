"""A host that the engine connects to, by name and port."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from htcondor_vpn.errors import GatewayNameError
from htcondor_vpn.tunnel.carriers.segments import Segments
from htcondor_vpn.wire.dialing import Endpoint, connect_first


def host_port(host: object, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class Way(Protocol):
    """How a connection to a certain server is made. `segments` says how large its packets may be."""

    @property
    def segments(self) -> Segments: ...

    async def dial(self) -> socket.socket:
        """Returns a connected, non-blocking TCP socket; raises OSError or VpnError. Put a deadline around it."""

    def forget(self) -> None:
        """Has the next connection made from scratch."""


class Endpointed:
    """The direct `Way` to one address."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        host, port = endpoint[1][:2]
        self.segments = Segments(host_port(host, port))

    async def dial(self) -> socket.socket:
        return await connect_first([self._endpoint], segment_bytes=self.segments.limit_bytes)

    def forget(self) -> None:
        self.segments.lost()


class Server:
    """The direct `Way` to `host`:`port`, which is called `what` in errors and is set by `knob`."""

    def __init__(self, what: str, host: str, port: int, knob: str) -> None:
        self.what, self.host, self.port, self._knob = what, host, port, knob
        self.name = host_port(host, port)
        self.segments = Segments(self.name)
        self._addresses: list[Endpoint] = []

    async def dial(self) -> socket.socket:
        """Connects to the address that answers first, beginning with the one that did last time.

        Raises `GatewayNameError` or OSError.
        """
        if not self._addresses:
            await self._resolve()
        sock = await connect_first(self._addresses, segment_bytes=self.segments.limit_bytes)
        answered = sock.getpeername()[:2]
        self._addresses.sort(key=lambda endpoint: endpoint[1][:2] != answered)
        return sock

    async def _resolve(self) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise GatewayNameError(
                f"the {self.what}'s name {self.host} does not resolve: {error.strerror}",
                f"check {self._knob}, or give the {self.what}'s address",
            ) from error
        self._addresses = [(family, address) for family, _, _, _, address in found]

    def forget(self) -> None:
        self._addresses = []
        self.segments.lost()
