"""A SOCKS5 server (RFC 1928, RFC 1929): a site's own, for example dante, or `ssh -D`'s."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct

from htcondor_vpn.errors import GatewayUnreachable, ProxyRefused
from htcondor_vpn.tunnel.carrier import FlowRefused, never
from htcondor_vpn.tunnel.carriers.server import Way
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.http import ProtocolError
from htcondor_vpn.wire.stream import PlainStream

CONNECT_SECONDS = 10.0
FLOW_SECONDS = 60.0

_VERSION, _CONNECT = 5, 1
_NO_AUTHENTICATION, _PASSWORD, _NO_METHOD = 0, 2, 0xFF
_PASSWORD_VERSION = 1
_IPV4, _DOMAIN, _IPV6 = 1, 3, 4
_ADDRESS_BYTES = {_IPV4: 4, _IPV6: 16}

#: ssh ends the connection where its server could not make one, and does not say why.
_NO_REPLY = -1

#: RFC 1928's replies in RFC 9209's words.
_REPLIES = {
    _NO_REPLY: "connection_terminated",
    1: "proxy_internal_response",
    2: "destination_ip_prohibited",
    3: "destination_ip_unroutable",
    4: "destination_ip_unroutable",
    5: "connection_refused",
    6: "connection_timeout",
    7: "proxy_configuration_error",
    8: "destination_ip_unroutable",
}


class Socks5:
    """One server, called `name`, to which `way` leads; `credentials` are (user, password), sent in clear."""

    def __init__(self, name: str, way: Way, credentials: tuple[str, str] | None = None) -> None:
        self.name, self._way, self._credentials = name, way, credentials

    async def connect(self, host: str, port: int) -> tuple[PlainStream, bytes]:
        """Returns a stream to `host`:`port`, and b"".

        Raises `GatewayUnreachable` or `ProxyRefused` about the server, `FlowRefused` about the destination.
        """
        stream = PlainStream(await self._dial())
        try:
            with Deadline(FLOW_SECONDS):
                await self._authenticate(stream)
                await stream.write(struct.pack("!BBx", _VERSION, _CONNECT) + _address(host) + struct.pack("!H", port))
                try:
                    reply = await _reply(stream)
                except ConnectionResetError:
                    reply = _NO_REPLY
        except BaseException:
            stream.abort()
            raise
        if reply:
            await stream.close()
            error = _REPLIES.get(reply, "proxy_internal_response")
            raise FlowRefused(502, f"socks5; error={error}", f"the SOCKS server {self.name}")
        return stream, b""

    async def _dial(self) -> socket.socket:
        try:
            with Deadline(CONNECT_SECONDS):
                return await self._way.dial()
        except (OSError, asyncio.TimeoutError) as error:
            said = getattr(error, "strerror", None) or f"it does not answer within {CONNECT_SECONDS:g} s"
            raise GatewayUnreachable(
                f"the SOCKS server {self.name} cannot be reached: {said}",
                "check that it runs, and that this node may connect to it",
            ) from error

    async def _authenticate(self, stream: PlainStream) -> None:
        methods = bytes([_NO_AUTHENTICATION, _PASSWORD] if self._credentials else [_NO_AUTHENTICATION])
        await stream.write(bytes([_VERSION, len(methods)]) + methods)
        version, method = await stream.read_exactly(2)
        if version != _VERSION:
            raise ProtocolError(f"{self.name} is no SOCKS5 server")
        if method == _PASSWORD and self._credentials:
            user, password = (word.encode() for word in self._credentials)
            await stream.write(bytes([_PASSWORD_VERSION, len(user)]) + user + bytes([len(password)]) + password)
            _, status = await stream.read_exactly(2)
            if status:
                raise self._refused("the name and password that it is given")
        elif method == _NO_METHOD:
            raise self._refused("us with what we have" if self._credentials else "connections without a password")
        elif method != _NO_AUTHENTICATION:
            raise ProtocolError(f"the SOCKS server {self.name} chose a method that it was not offered")

    def _refused(self, what: str) -> ProxyRefused:
        return ProxyRefused(
            f"the SOCKS server {self.name} refuses {what}",
            "put USER:PASSWORD into a file and its path into HTCONDOR_VPN_SOCKS5_CREDENTIALS_FILE",
        )

    async def lost(self) -> None:
        await never()

    def forget(self) -> None:
        self._way.forget()


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna")
        return bytes([_DOMAIN, len(name)]) + name
    return bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed


async def _reply(stream: PlainStream) -> int:
    """Reads the answer to a request to its last byte, and returns its code; 0 is success."""
    version, code, _, kind = await stream.read_exactly(4)
    if version != _VERSION:
        raise ProtocolError("a malformed answer from a SOCKS server")
    if code:
        return code  # some servers send no more than that
    if kind == _DOMAIN:
        (length,) = await stream.read_exactly(1)
    else:
        length = _ADDRESS_BYTES.get(kind, 0)
    await stream.read_exactly(length + 2)
    return 0
