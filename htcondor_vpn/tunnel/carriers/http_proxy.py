"""A site's HTTP proxy that allows CONNECT (RFC 9110, 9.3.6), for example squid."""

from __future__ import annotations

import asyncio
import base64
import errno
import re
import socket

from htcondor_vpn.errors import GatewayUnreachable, ProxyRefused
from htcondor_vpn.tunnel.carrier import FlowRefused, never
from htcondor_vpn.tunnel.carriers.segments import Segments
from htcondor_vpn.tunnel.carriers.server import Server, host_port
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.http import HttpConnection, Response
from htcondor_vpn.wire.stream import PlainStream

CONNECT_SECONDS = 10.0
#: A proxy tells of a destination that is silent later than a gateway of ours.
FLOW_SECONDS = 60.0

#: squid's own header gives the errno of its connect(2).
_SQUID_ERROR = re.compile(r"\w+ (\d+)")
_BY_ERRNO = {
    errno.ECONNREFUSED: "connection_refused",
    errno.ETIMEDOUT: "connection_timeout",
    errno.ENETUNREACH: "destination_ip_unroutable",
    errno.EHOSTUNREACH: "destination_ip_unroutable",
}


class HttpProxy:
    """One proxy. `credentials` are (user, password) for the Basic scheme (RFC 7617), which the proxy sees in clear."""

    def __init__(self, host: str, port: int, knob: str, credentials: tuple[str, str] | None = None) -> None:
        self._server = Server("proxy", host, port, knob)
        self.name = self._server.name
        self.segments = self._server.segments
        self._headers: list[tuple[str, str]] = []
        if credentials:
            encoded = base64.b64encode(":".join(credentials).encode()).decode("ascii")
            self._headers.append(("Proxy-Authorization", f"Basic {encoded}"))

    async def connect(self, host: str, port: int) -> tuple[PlainStream, bytes]:
        """Returns a stream to `host`:`port`, and what came on it already.

        Raises `GatewayUnreachable` or `ProxyRefused` about the proxy, `FlowRefused` about the destination.
        """
        stream = PlainStream(await self._dial(), half_closes=False)
        target = host_port(host, port)
        connection = HttpConnection(stream)
        try:
            with Deadline(FLOW_SECONDS):
                answer = await connection.exchange("CONNECT", target, [("Host", target), *self._headers])
        except BaseException:
            stream.abort()
            raise
        if 200 <= answer.status < 300:
            return stream, connection.early_bytes
        await stream.close()
        if answer.status == 407:
            given = "the name and password that it is given" if self._headers else "connections without a password"
            raise ProxyRefused(
                f"the proxy {self.name} refuses {given}",
                "put USER:PASSWORD into a file and its path into HTCONDOR_VPN_PROXY_CREDENTIALS_FILE",
            )
        raise FlowRefused(answer.status, _reason(answer), f"the proxy {self.name}")

    async def _dial(self) -> socket.socket:
        try:
            with Deadline(CONNECT_SECONDS):
                return await self._server.dial()
        except (OSError, asyncio.TimeoutError) as error:
            said = getattr(error, "strerror", None) or f"it does not answer within {CONNECT_SECONDS:g} s"
            raise GatewayUnreachable(
                f"the proxy {self.name} cannot be reached: {said}",
                "check that it runs, and that this node may connect to it",
            ) from error

    async def lost(self) -> None:
        await never()

    def forget(self) -> None:
        """Has the proxy's name looked up again."""
        self._server.forget()


class ThroughProxy:
    """The `Way` to `host`:`port` by an HTTP proxy, which also resolves the name."""

    def __init__(self, proxy: HttpProxy, host: str, port: int) -> None:
        self._proxy, self._host, self._port = proxy, host, port

    @property
    def segments(self) -> Segments:
        return self._proxy.segments

    async def dial(self) -> socket.socket:
        stream, early = await self._proxy.connect(self._host, self._port)
        if early:
            stream.abort()
            raise ConnectionError("something spoke before it was asked")
        return stream.sock

    def forget(self) -> None:
        self._proxy.forget()


def _reason(answer: Response) -> str:
    """The answer's Proxy-Status (RFC 9209), or what it would be by what squid says."""
    if told := answer.headers.get("proxy-status"):
        return told
    said = answer.headers.get("x-squid-error", "")
    if answer.status == 403:
        return "proxy; error=destination_ip_prohibited"
    match = _SQUID_ERROR.fullmatch(said)
    known = _BY_ERRNO.get(int(match[1])) if match else None
    return f"proxy; error={known}" if known else said
