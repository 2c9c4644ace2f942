"""Connections to the gateway: for flows, some of them in reserve, and persistent ones for questions (DNS, health).

A health probe is a request on a connection of its own, and as large as packets get (`segments`). A gateway that ends it
is noticed when it does.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import quote

import h11

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.tunnel.carrier import Address, Answer, FarEnd
from htcondor_vpn.tunnel.carriers.gateway_connections import FLOW_SECONDS, PROBE_TARGET, GatewayConnections
from htcondor_vpn.tunnel.carriers.segments import padding
from htcondor_vpn.wire.datagrams import PROTOCOL, TARGET_PREFIX, CapsulePipe, DatagramPipe
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.http import HttpConnection, ProtocolError, Response, Unanswered
from htcondor_vpn.wire.tls import TlsStream

ECHO_TARGET = "/.well-known/htcondor-vpn/echo"
_MAX_IDLE = 16
_INSTANCE_LENGTH = 64


class FlowOpener(Protocol):
    """What opens flows through a gateway: its `GatewayConnections`, or those of other processes."""

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        """As `Carrier.open_flow`."""

    def forget(self) -> None:
        """Has the next flow opened from scratch."""


class Gateway:
    """One gateway; see `Carrier`. Asks it by `connections`, some of which are kept; flows are opened by `flows`."""

    start_seconds = 0.0

    def __init__(self, connections: GatewayConnections, flows: FlowOpener | None = None) -> None:
        self.name, self.connections = connections.name, connections
        self._flows = flows or connections
        self._idle: list[HttpConnection] = []
        self._probed: HttpConnection | None = None

    async def open_flow(self, address: Address, port: int) -> tuple[FarEnd, bytes]:
        return await self._flows.open_flow(address, port)

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        """Opens a way for datagrams to `address`:`port` beyond the gateway (RFC 9298): a stream of capsules.

        Raises as `open_flow`.
        """
        target = f"{TARGET_PREFIX}{quote(str(address))}/{port}/"
        headers = [
            ("Host", self.name), *self.connections.authorization(),
            ("Connection", "Upgrade"), ("Upgrade", PROTOCOL), ("Capsule-Protocol", "?1"),
        ]  # fmt: skip
        connection = await self.connections.turned("GET", target, headers, (101,))
        assert isinstance(connection.stream, TlsStream)  # as `connect` makes it
        return CapsulePipe(connection.stream, connection.early_bytes)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """Has the gateway send an ICMP echo request; returns what came back. Raises as `open_flow`."""
        asked = "POST", f"{ECHO_TARGET}?address={quote(str(address))}", [("Content-Type", "application/octet-stream")]
        with Deadline(FLOW_SECONDS):
            connection, answer = None, None
            while answer is None and self._idle:
                connection = self.connections.trusted(self._idle.pop())
                if connection is not None:
                    with contextlib.suppress(Unanswered):  # it had ended already: nobody has seen the request
                        answer = await self.connections.answered(connection, *asked, payload)
            if connection is None or answer is None:
                connection = await self.connections.connect()
                answer = await self.connections.answered(connection, *asked, payload)
        if answer.status >= 300:
            raise self.connections.refusal(answer)
        self._keep(connection)
        return answer.body

    def request_head(self, method: str, target: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """The head of an authenticated request, for who moves the bodies on a connection of `connect` himself."""
        fields = [("Host", self.name), *self.connections.authorization(), *headers]
        return h11.Connection(h11.CLIENT).send(h11.Request(method=method, target=target, headers=fields)) or b""

    async def ask(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Response:
        """Like `exchange`, on one of a few connections that are kept for it."""
        headers = list(headers)
        while self._idle:
            connection = self.connections.trusted(self._idle.pop())
            if connection is None:
                continue
            try:
                answer = await self.connections.exchange(connection, method, target, headers, body)
            except (OSError, ssl.SSLError):
                continue  # the gateway had closed it meanwhile: try the next one, at last a new one
            self._keep(connection)
            return answer
        connection = await self.connections.connect()
        answer = await self.connections.exchange(connection, method, target, headers, body)
        self._keep(connection)
        return answer

    def _keep(self, connection: HttpConnection) -> None:
        if connection.reusable and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.stream.abort()

    async def ask_dns(self, query: bytes) -> bytes:
        """DNS over HTTPS (RFC 8484)."""
        kind = "application/dns-message"
        return (await self.ask("POST", "/dns-query", [("Content-Type", kind), ("Accept", kind)], query)).body

    async def probe(self) -> Answer:
        self._probed = self.connections.trusted(self._probed)
        connection = self._probed = self._probed or await self.connections.connect()
        start = time.perf_counter()
        target = f"{PROBE_TARGET}?padding={padding(connection.stream.sock)}"
        answer = await self.connections.exchange(connection, "GET", target)
        self.connections.way.segments.passed()
        latency_ms = (time.perf_counter() - start) * 1e3
        try:
            told = json.loads(answer.body)
            families = tuple(family for family in ("ipv4", "ipv6") if family in told["families"])
            load = told.get("load")
            known = Answer(
                families,
                latency_ms,
                udp=told.get("udp") is True,
                load=float(min(max(load, 0.0), 1.0)) if type(load) in (int, float) and load == load else 0.0,
                draining=told.get("draining") is True,
                instance=str(told.get("instance", ""))[:_INSTANCE_LENGTH],
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ProtocolError("what answers is not a gateway of ours") from error
        if not connection.reusable:
            raise ProtocolError("it does not keep the connection open")
        if not families:
            raise GatewayUnreachable(
                f"the gateway {self.name} itself reaches neither IPv4 nor IPv6",
                "check its routes, and its allowed networks",
            )
        return known

    async def lost(self) -> None:
        """As `Carrier.lost`; but a gateway that ends the connection in order may only have handed over to another
        process of it, and is asked anew."""
        while self._probed is not None:
            if await self._probed.stream.read(1):
                raise ProtocolError("it says something unasked")
            self._probed.stream.abort()
            self._probed = None
            try:
                await self.probe()
            except BaseException:  # the next probe starts from scratch, also if only the time was over
                self._probed = None
                raise

    def forget(self) -> None:
        """Cuts the kept connections and forgets the addresses: the next connection is made from scratch."""
        self._flows.forget()
        self.connections.forget()
        for connection in self._idle:
            connection.stream.abort()
        self._idle.clear()
        if self._probed is not None:
            self._probed.stream.abort()
            self._probed = None
