"""Connections to the gateway: for flows, some of them in reserve, and persistent ones for questions (DNS, health).

A health probe is a request on a connection of its own, and as large as packets get (`segments`). A gateway that ends it
is noticed when it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Container, Iterable
from urllib.parse import quote

import h11

from htcondor_vpn.errors import GatewayUnreachable, GatewayUntrusted, TokenRefused
from htcondor_vpn.tunnel.carrier import Address, Answer, CarrierBusy, FlowRefused
from htcondor_vpn.tunnel.carriers.ready import ReadyConnections
from htcondor_vpn.tunnel.carriers.segments import padding
from htcondor_vpn.tunnel.carriers.server import Server, Way, host_port
from htcondor_vpn.wire.datagrams import PROTOCOL, TARGET_PREFIX, CapsulePipe, DatagramPipe
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.http import HttpConnection, ProtocolError, Response, Unanswered
from htcondor_vpn.wire.stream import Stream
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.trust import Trust

CONNECT_SECONDS = 10.0
#: Longer than the gateway itself tries to reach a destination.
FLOW_SECONDS = 15.0
#: Half of what OpenSSL lets a session live.
SESSION_SECONDS = 3600.0
PROBE_TARGET = "/.well-known/htcondor-vpn"
ECHO_TARGET = "/.well-known/htcondor-vpn/echo"
_MAX_IDLE = 16
_INSTANCE_LENGTH = 64


class Gateway:
    """One gateway, by name and port; see `Carrier`. Makes authenticated connections to it and keeps some for questions.

    `token` returns the bearer token to show now; None where a client certificate says who we are. `way` leads there
    where it is not to be connected to directly, or where `address` is only one of the name's.
    """

    start_seconds = 0.0

    def __init__(
        self,
        host: str,
        port: int,
        trust: Trust,
        token: Callable[[], str] | None,
        way: Way | None = None,
        address: str = "",
    ) -> None:
        self.host, self.port = host, port
        self.name = f"{host_port(host, port)} at {address}" if address else host_port(host, port)
        self._way = way or Server("gateway", host, port, "HTCONDOR_VPN_GATEWAYS")
        self._trust = trust
        self._token = token
        self._idle: list[HttpConnection] = []
        self._probed: HttpConnection | None = None
        self._ready = ReadyConnections(self.connect, lambda connection: self.exchange(connection, "GET", PROBE_TARGET))
        self._session: tuple[ssl.SSLSession, ssl.SSLContext] | None = None  # it is good with its context only
        self._session_until = 0.0

    async def connect(self) -> HttpConnection:
        """Opens a connection and checks whose it is; raises `GatewayUnreachable`, `GatewayUntrusted`."""
        try:
            with Deadline(CONNECT_SECONDS):
                stream = await self._secured()
        except asyncio.TimeoutError:  # below Python 3.11 it is no OSError
            raise self._unreachable(f"it does not answer within {CONNECT_SECONDS:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise GatewayUntrusted(
                f"the gateway {self.name} has no certificate that we trust ({error.verify_message}); "
                "no credential was sent",
                "check HTCONDOR_VPN_GATEWAY_CA_FILE and the name in HTCONDOR_VPN_GATEWAYS",
            ) from error
        except (OSError, ssl.SSLError) as error:
            raise self._unreachable(error.strerror or str(error)) from error
        return HttpConnection(stream)

    async def _secured(self) -> TlsStream:
        """Shakes hands and checks whose the connection is."""
        try:
            return await self._shaken(self._trust.context)
        except ssl.SSLCertVerificationError:
            reconnaissance = self._trust.reconnaissance
            if reconnaissance is None:
                raise
        (await self._shaken(reconnaissance)).abort()
        return await self._shaken(self._trust.context)

    async def _shaken(self, context: ssl.SSLContext) -> TlsStream:
        session = self._session[0] if self._session is not None and self._session[1] is context else None
        stream = await TlsStream.client(await self._way.dial(), context, self.host, session)
        try:
            self._trust.check(stream, self.name)
        except GatewayUntrusted:
            stream.abort()
            raise
        return stream

    def _authorization(self, field: str = "Authorization") -> list[tuple[str, str]]:
        return [] if self._token is None else [(field, f"Bearer {self._token()}")]

    def _unreachable(self, why: str) -> GatewayUnreachable:
        return GatewayUnreachable(
            f"the gateway {self.name} cannot be reached: {why}",
            "check that it runs, and that this node may connect to it",
        )

    def _refusal(self, answer: Response) -> FlowRefused | GatewayUnreachable:
        """What an answer that grants no flow means; that of a gateway which is full, or drains, is none about the
        destination, and another gateway may be tried."""
        reason = answer.headers.get("proxy-status", "")
        if answer.status in (429, 503):
            return CarrierBusy(
                f"the gateway {self.name} takes no flow now: {reason or f'it answered {answer.status}'}",
                "see its log; more gateways in HTCONDOR_VPN_GATEWAYS would share the flows",
            )
        return FlowRefused(answer.status, reason)

    async def open_flow(self, address: Address, port: int) -> tuple[Stream, bytes]:
        """Opens a flow to `address`:`port` beyond the gateway (RFC 9110, 9.3.6).

        Returns the stream and what the far side has sent already. Raises `FlowRefused`, asyncio.TimeoutError, or what
        `connect` raises.
        """
        target = host_port(address, port)
        headers = [("Host", target), *self._authorization("Proxy-Authorization")]
        connection = await self._turned("CONNECT", target, headers, range(200, 300))
        return connection.stream, connection.early_bytes

    async def open_datagrams(self, address: Address, port: int) -> DatagramPipe:
        """Opens a way for datagrams to `address`:`port` beyond the gateway (RFC 9298): a stream of capsules.

        Raises as `open_flow`.
        """
        target = f"{TARGET_PREFIX}{quote(str(address))}/{port}/"
        headers = [
            ("Host", self.name), *self._authorization(),
            ("Connection", "Upgrade"), ("Upgrade", PROTOCOL), ("Capsule-Protocol", "?1"),
        ]  # fmt: skip
        connection = await self._turned("GET", target, headers, (101,))
        assert isinstance(connection.stream, TlsStream)  # as `connect` makes it
        return CapsulePipe(connection.stream, connection.early_bytes)

    async def echo(self, address: Address, payload: bytes) -> bytes:
        """Has the gateway send an ICMP echo request; returns what came back. Raises as `open_flow`."""
        asked = "POST", f"{ECHO_TARGET}?address={quote(str(address))}", [("Content-Type", "application/octet-stream")]
        with Deadline(FLOW_SECONDS):
            answer = None
            while answer is None and self._idle:
                connection = self._idle.pop()
                with contextlib.suppress(Unanswered):  # it had ended already: nobody has seen the request
                    answer = await self._exchange(connection, *asked, payload)
            if answer is None:
                connection = await self.connect()
                answer = await self._exchange(connection, *asked, payload)
        if answer.status >= 300:
            raise self._refusal(answer)
        self._keep(connection)
        return answer.body

    async def _turned(
        self, method: str, target: str, headers: Iterable[tuple[str, str]], granted: Container[int]
    ) -> HttpConnection:
        """Returns a connection that a request has turned into a flow's; raises as `open_flow`."""
        headers = list(headers)
        connection, answer = self._ready.take(), None
        try:
            if connection is not None:
                with contextlib.suppress(Unanswered):  # it had ended already: nobody has seen the request
                    answer = await self._asked(connection, method, target, headers)
            if connection is None or answer is None:
                connection = await self.connect()
                answer = await self._asked(connection, method, target, headers)
        except (OSError, ssl.SSLError) as error:
            if isinstance(error, asyncio.TimeoutError):  # the end of our patience: an OSError from Python 3.11 on
                raise
            raise self._unreachable(f"it was lost before it answered: {error}") from error
        if answer.status not in granted:
            await connection.stream.close()
            raise self._refusal(answer)
        connection.stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)  # what ReadyConnections set
        return connection

    async def _asked(
        self, connection: HttpConnection, method: str, target: str, headers: list[tuple[str, str]]
    ) -> Response:
        try:
            with Deadline(FLOW_SECONDS):
                answer = await connection.exchange(method, target, headers)
            if answer.status == 408:  # it gave up waiting just before (RFC 9110, 15.5.9)
                raise Unanswered("the gateway had given up waiting")
        except BaseException:
            connection.stream.abort()
            raise
        self._remember(connection.stream)
        return answer

    def _remember(self, stream: Stream) -> None:
        """Keeps the TLS session for the next handshakes. Of a server it is good as often as one likes (OpenSSL)."""
        now = asyncio.get_running_loop().time()
        if now > self._session_until and isinstance(stream, TlsStream) and (session := stream.session) is not None:
            self._session, self._session_until = (session, stream.tls.context), now + SESSION_SECONDS

    async def exchange(
        self,
        connection: HttpConnection,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> Response:
        """Sends one authenticated request on `connection`; cuts it unless it can be used again.

        Raises `TokenRefused`, or ConnectionError for any other answer than success.
        """
        answer = await self._exchange(connection, method, target, headers, body)
        if answer.status >= 300:
            raise ProtocolError(f"the gateway {self.name} answered {answer.status} to {method} {target}")
        return answer

    async def _exchange(
        self, connection: HttpConnection, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes
    ) -> Response:
        fields = [("Host", self.name), *self._authorization(), *headers]
        try:
            answer = await connection.exchange(method, target, fields, body)
        except BaseException:
            self._way.segments.given_up(connection.stream.sock)
            connection.stream.abort()
            raise
        if answer.status >= 300 or not connection.reusable:
            await connection.stream.close()
        if answer.status in (401, 407):
            raise TokenRefused(
                f"the gateway {self.name} refuses our token",
                "make one on the gateway (htcondor-vpn gateway token add NAME) and put it into HTCONDOR_VPN_TOKEN_FILE",
            )
        return answer

    def request_head(self, method: str, target: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """The head of an authenticated request, for who moves the bodies on a connection of `connect` himself."""
        fields = [("Host", self.name), *self._authorization(), *headers]
        return h11.Connection(h11.CLIENT).send(h11.Request(method=method, target=target, headers=fields)) or b""

    async def ask(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Response:
        """Like `exchange`, on one of a few connections that are kept for it."""
        headers = list(headers)
        while self._idle:
            connection = self._idle.pop()
            try:
                answer = await self.exchange(connection, method, target, headers, body)
            except (OSError, ssl.SSLError):
                continue  # the gateway had closed it meanwhile: try the next one, at last a new one
            self._keep(connection)
            return answer
        connection = await self.connect()
        answer = await self.exchange(connection, method, target, headers, body)
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
        if self._probed is None:
            self._probed = await self.connect()
        connection = self._probed
        start = time.perf_counter()
        answer = await self.exchange(connection, "GET", f"{PROBE_TARGET}?padding={padding(connection.stream.sock)}")
        self._way.segments.passed()
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
        self._ready.forget()
        self._session, self._session_until = None, 0.0
        for connection in self._idle:
            connection.stream.abort()
        self._idle.clear()
        if self._probed is not None:
            self._probed.stream.abort()
            self._probed = None
        self._way.forget()
