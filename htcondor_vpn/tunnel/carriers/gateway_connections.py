"""Connections to one gateway: each checked for whose it is, some of them in reserve, one turned into each flow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Container, Iterable

from htcondor_vpn.errors import GatewayUnreachable, GatewayUntrusted, TokenRefused
from htcondor_vpn.tunnel.carrier import Address, CarrierBusy, FlowRefused
from htcondor_vpn.tunnel.carriers.ready import ReadyConnections
from htcondor_vpn.tunnel.carriers.server import Server, Way, host_port
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

#: Returns the bearer token to show now.
Token = Callable[[], str]


class GatewayConnections:
    """Makes authenticated connections to the gateway at `host`:`port`, and flows of them.

    `token` is None where a client certificate says who we are. `way` leads there where it is not to be connected to
    directly, or where `address` is only one of the name's.
    """

    def __init__(
        self, host: str, port: int, trust: Trust, token: Token | None, way: Way | None = None, address: str = ""
    ) -> None:
        self.host, self.port, self.address = host, port, address
        self.name = f"{host_port(host, port)} at {address}" if address else host_port(host, port)
        self.trust, self.token = trust, token
        self.way = way or Server("gateway", host, port, "HTCONDOR_VPN_GATEWAYS")
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
            return await self._shaken(self.trust.context)
        except ssl.SSLCertVerificationError:
            reconnaissance = self.trust.reconnaissance
            if reconnaissance is None:
                raise
        (await self._shaken(reconnaissance)).abort()
        return await self._shaken(self.trust.context)

    async def _shaken(self, context: ssl.SSLContext) -> TlsStream:
        session = self._session[0] if self._session is not None and self._session[1] is context else None
        stream = await TlsStream.client(await self.way.dial(), context, self.host, session)
        try:
            self.trust.check(stream, self.name)
        except GatewayUntrusted:
            stream.abort()
            raise
        return stream

    def trusted(self, connection: HttpConnection | None) -> HttpConnection | None:
        """Returns a connection that was kept; cuts it if its key is pinned no more, and returns None."""
        if connection is None:
            return None
        assert isinstance(connection.stream, TlsStream)  # as `connect` makes it
        try:
            self.trust.check(connection.stream, self.name)
        except GatewayUntrusted:
            connection.stream.abort()
            return None
        return connection

    def authorization(self, field: str = "Authorization") -> list[tuple[str, str]]:
        """The header field that says who we are, if one does."""
        return [] if self.token is None else [(field, f"Bearer {self.token()}")]

    def _unreachable(self, why: str) -> GatewayUnreachable:
        return GatewayUnreachable(
            f"the gateway {self.name} cannot be reached: {why}",
            "check that it runs, and that this node may connect to it",
        )

    def refusal(self, answer: Response) -> FlowRefused | GatewayUnreachable:
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
        headers = [("Host", target), *self.authorization("Proxy-Authorization")]
        connection = await self.turned("CONNECT", target, headers, range(200, 300))
        return connection.stream, connection.early_bytes

    async def turned(
        self, method: str, target: str, headers: Iterable[tuple[str, str]], granted: Container[int]
    ) -> HttpConnection:
        """Returns a connection that a request has turned into a flow's; raises as `open_flow`."""
        headers = list(headers)
        connection, answer = self.trusted(self._ready.take()), None
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
            raise self.refusal(answer)
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
        answer = await self.answered(connection, method, target, headers, body)
        if answer.status >= 300:
            raise ProtocolError(f"the gateway {self.name} answered {answer.status} to {method} {target}")
        return answer

    async def answered(
        self, connection: HttpConnection, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes
    ) -> Response:
        """As `exchange`, but returns whatever the answer is."""
        fields = [("Host", self.name), *self.authorization(), *headers]
        try:
            answer = await connection.exchange(method, target, fields, body)
        except BaseException:
            self.way.segments.given_up(connection.stream.sock)
            connection.stream.abort()
            raise
        if answer.status >= 300 or not connection.reusable:
            await connection.stream.close()
        if answer.status in (401, 407):
            raise TokenRefused(
                f"the gateway {self.name} refuses our token",
                "it is unknown there, revoked or expired: make one on the gateway "
                "(htcondor-vpn gateway token add NAME) and put it into HTCONDOR_VPN_TOKEN_FILE",
            )
        return answer

    def forget(self) -> None:
        """Cuts the connections in reserve and forgets sessions and addresses: the next one is made from scratch."""
        self._ready.forget()
        self._session, self._session_until = None, 0.0
        self.way.forget()
