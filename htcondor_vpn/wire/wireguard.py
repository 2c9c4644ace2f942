"""WireGuard's keys, and the text protocol by which an implementation in user space is configured and asked.

Source: "Configuration Protocol" of the Cross-platform Userspace Implementation page of the WireGuard project.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Union

from htcondor_vpn.wire.http import ProtocolError

Address = Union[IPv4Address, IPv6Address]
Network = Union[IPv4Network, IPv6Network]

KEY_BYTES = 32
_READ_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 64 << 20


def parse_key(text: str) -> bytes:
    """Returns the 32 bytes of a key in base64; raises ValueError with the rest of a sentence, without the text."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES or base64.b64encode(key).decode() != text:
        raise ValueError("is no key: that is 44 characters of base64")
    return key


def key_text(key: bytes) -> str:
    """A key in base64, as everyone writes it."""
    return base64.b64encode(key).decode()


@dataclass(frozen=True)
class Peer:
    """What a device knows of another: which addresses lie behind it, and where it is (address and port), if known.

    `keepalive_seconds` is how often something is sent to it at least; 0 is never.
    """

    public_key: bytes
    allowed_ips: tuple[Network, ...]
    preshared_key: bytes | None = None
    endpoint: tuple[Address, int] | None = None
    keepalive_seconds: int = 0

    def lines(self) -> Iterable[str]:
        yield f"public_key={self.public_key.hex()}"
        yield from ("replace_allowed_ips=true", *(f"allowed_ip={network}" for network in self.allowed_ips))
        if self.preshared_key is not None:
            yield f"preshared_key={self.preshared_key.hex()}"
        if self.endpoint is not None:
            yield _endpoint_line(*self.endpoint)
        yield f"persistent_keepalive_interval={self.keepalive_seconds}"


@dataclass(frozen=True)
class PeerState:
    """What a device tells of a peer: the last handshake (Unix seconds, 0 for none), bytes, and HOST:PORT if known."""

    public_key: bytes
    last_handshake: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0
    endpoint: str = ""


class Device:
    """The connected control socket of a device."""

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control
        self._turn = asyncio.Lock()

    async def configure(self, private_key: bytes, peers: Iterable[Peer], listen_port: int | None = None) -> None:
        """Gives the device its key, and these peers and no others; raises OSError, `ProtocolError`."""
        port = [] if listen_port is None else [f"listen_port={listen_port}"]
        lines = [f"private_key={private_key.hex()}", *port, "replace_peers=true"]
        await self._ask("set=1", *lines, *(line for peer in peers for line in peer.lines()))

    async def add(self, peer: Peer) -> None:
        """Adds a peer, or changes it; raises as `configure`."""
        await self._ask("set=1", *peer.lines())

    async def remove(self, public_key: bytes) -> None:
        """Forgets a peer: its session ends at once. Raises as `configure`."""
        await self._ask("set=1", f"public_key={public_key.hex()}", "remove=true")

    async def peers(self) -> list[PeerState]:
        """Returns what the device tells of its peers; raises as `configure`."""
        return parse_state(await self._ask("get=1"))

    async def _ask(self, *lines: str) -> str:
        loop = asyncio.get_running_loop()
        async with self._turn:
            await loop.sock_sendall(self._control, ("\n".join(lines) + "\n\n").encode())
            said = b""
            while not said.endswith(b"\n\n"):
                more = await loop.sock_recv(self._control, _READ_BYTES)
                said += more
                if not more or len(said) > _MAX_ANSWER_BYTES:
                    raise ConnectionResetError("wireguard-go ended the connection to its control socket")
        text = said.decode("ascii", "replace")
        number = text.rstrip("\n").rpartition("\n")[2].partition("errno=")[2]
        if not number.lstrip("-").isdecimal():
            raise ProtocolError("wireguard-go answers without an errno")
        if int(number):
            raise OSError(abs(int(number)), f"wireguard-go refuses: {os.strerror(abs(int(number)))}")
        return text

    def close(self) -> None:
        self._control.close()


def parse_state(text: str) -> list[PeerState]:
    """Reads the answer to `get=1`; raises `ProtocolError`."""
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals:
            continue
        if name == "public_key":
            found.append({})
        if found:
            found[-1][name] = value
    try:
        return [
            PeerState(
                bytes.fromhex(each["public_key"]),
                int(each.get("last_handshake_time_sec", 0)) + int(each.get("last_handshake_time_nsec", 0)) / 1e9,
                int(each.get("rx_bytes", 0)),
                int(each.get("tx_bytes", 0)),
                each.get("endpoint", ""),
            )
            for each in found
        ]
    except ValueError as error:
        raise ProtocolError(f"wireguard-go tells a state that is none: {error}") from error


def _endpoint_line(address: Address, port: int) -> str:
    return f"endpoint=[{address}]:{port}" if address.version == 6 else f"endpoint={address}:{port}"
