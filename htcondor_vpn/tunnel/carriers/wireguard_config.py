"""A WireGuard configuration file, as wg-quick(8) reads it and VPN admins hand it out.

Read strictly: what is not understood is an error, and so is what asks for a command to be run. The file holds a key,
and is for its owner alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, Union

from htcondor_vpn import knob_values as is_a
from htcondor_vpn.errors import ConfigUnreadable, TokenUnusable
from htcondor_vpn.wire.wireguard import Network, parse_key

Interface = Union[IPv4Interface, IPv6Interface]
Parsers = dict[str, Callable[[str], Any]]

#: What fits into the packets of an ordinary network, IPv6 outside included; wg-quick's own default.
DEFAULT_MTU = 1420
_MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class RemotePeer:
    """A peer as the file has it: `endpoint` is a host, by name or address, and a port."""

    public_key: bytes
    allowed_ips: tuple[Network, ...]
    endpoint: tuple[str, int]
    preshared_key: bytes | None = field(default=None, repr=False)
    keepalive_seconds: int = 0


@dataclass(frozen=True)
class WireguardConfig:
    """One file: our key and addresses, the name servers beyond, and who is at the other end."""

    private_key: bytes = field(repr=False)
    addresses: tuple[Interface, ...]
    peers: tuple[RemotePeer, ...]
    name_servers: tuple[str, ...] = ()
    mtu: int = DEFAULT_MTU
    listen_port: int | None = None

    @property
    def families(self) -> tuple[str, ...]:
        """Those in which we have an address, and a peer may be sent something: "ipv4", "ipv6"."""
        routed = {network.version for peer in self.peers for network in peer.allowed_ips}
        return tuple(sorted({f"ipv{each.version}" for each in self.addresses if each.version in routed}))


def read_config(path: Path) -> WireguardConfig:
    """Reads the file at `path`; raises `ConfigUnreadable`, and `TokenUnusable` where others may read it."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_BYTES)
    except OSError as error:
        raise ConfigUnreadable(
            f"the WireGuard configuration {path} cannot be read: {error.strerror}",
            "check HTCONDOR_VPN_WIREGUARD_CONFIG_FILES",
        ) from error
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        raise TokenUnusable(f"others may read the WireGuard configuration {path}, and its key", f"chmod 600 {path}")
    try:
        return parse_config(data.decode())
    except ValueError as error:
        remedy = "it is read as wg-quick(8) reads it, without the parts that run commands or set routes"
        raise ConfigUnreadable(f"{path}: {error}", remedy) from None


def parse_config(text: str) -> WireguardConfig:
    """Reads a file's text; raises ValueError that names the line and never shows a key."""
    interface: dict[str, Any] | None = None
    peers: list[tuple[int, dict[str, Any]]] = []
    known: Parsers = {}
    section: dict[str, Any] = {}
    for number, line in _lines(text):
        if line.lower() == "[interface]":
            if interface is not None:
                raise ValueError(f"line {number}: there is an [Interface] already")
            interface = section = {}
            known = _INTERFACE
        elif line.lower() == "[peer]":
            section = {}
            peers.append((number, section))
            known = _PEER
        else:
            name, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not known:
                raise ValueError(f"line {number}: neither a section nor NAME = VALUE in one")
            _assign(section, known, number, name.lower(), value)
    if interface is None:
        raise ValueError("there is no [Interface]")
    for name, title in (("privatekey", "PrivateKey"), ("address", "Address")):
        if name not in interface:
            raise ValueError(f"[Interface] has no {title}")
    if not peers:
        raise ValueError("there is no [Peer]")
    config = WireguardConfig(
        private_key=interface["privatekey"],
        addresses=interface["address"],
        peers=tuple(_peer(number, found) for number, found in peers),
        name_servers=interface.get("dns", ()),
        mtu=interface.get("mtu", DEFAULT_MTU),
        listen_port=interface.get("listenport"),
    )
    if len({peer.public_key for peer in config.peers}) < len(config.peers):
        raise ValueError("two [Peer] sections have the same PublicKey")
    if not config.families:
        raise ValueError("there is no IP version of which there are both an Address and AllowedIPs")
    return config


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if bare := line.partition("#")[0].strip():
            yield number, bare


def _assign(section: dict[str, Any], known: Parsers, number: int, name: str, value: str) -> None:
    if name in _COMMANDS:
        raise ValueError(f"line {number}: {_COMMANDS[name]} is refused: no commands are run")
    if name not in known:
        raise ValueError(f"line {number}: {name!r:.40} is not understood here")
    try:
        parsed = known[name](value)
    except ValueError as error:
        raise ValueError(f"line {number}: the value of {name} {error}") from None
    if name in _LISTS:
        parsed = (*section.get(name, ()), *parsed)
        if len(set(parsed)) < len(parsed):
            raise ValueError(f"line {number}: {name} has an entry twice")
    elif name in section:
        raise ValueError(f"line {number}: {name} is there already")
    section[name] = parsed


def _peer(number: int, found: dict[str, Any]) -> RemotePeer:
    for name, title in (("publickey", "PublicKey"), ("allowedips", "AllowedIPs"), ("endpoint", "Endpoint")):
        if name not in found:
            raise ValueError(f"line {number}: the [Peer] has no {title}")
    return RemotePeer(
        found["publickey"], found["allowedips"], found["endpoint"], found.get("presharedkey"),
        found.get("persistentkeepalive", 0),
    )  # fmt: skip


def _list(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Values between commas; an empty list is what nothing means."""

    def parse_all(text: str) -> tuple[Any, ...]:
        return tuple(parse(word.strip()) for word in text.split(",")) if text else ()

    return parse_all


def _interface_address(text: str) -> Interface:
    try:
        return ip_interface(text)
    except ValueError:
        raise ValueError("has an entry that is no ADDRESS or ADDRESS/PREFIX") from None


def _network(text: str) -> Network:
    """As WireGuard does, bits behind the prefix are passed over."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError("has an entry that is no ADDRESS or ADDRESS/PREFIX") from None


def _name_server(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("has an entry that is no address: search domains are not used here") from None


def _keepalive(text: str) -> int:
    return 0 if text.lower() == "off" else int(is_a.integer(0, 65535)(text))


_INTERFACE: Parsers = {
    "privatekey": parse_key,
    "address": _list(_interface_address),
    "dns": _list(_name_server),
    "mtu": is_a.integer(576, 65535),
    "listenport": is_a.integer(0, 65535),
}
_PEER: Parsers = {
    "publickey": parse_key,
    "presharedkey": parse_key,
    "endpoint": is_a.endpoint,
    "allowedips": _list(_network),
    "persistentkeepalive": _keepalive,
}
_LISTS = {"address", "dns", "allowedips"}
_COMMANDS = {name.lower(): name for name in ("PreUp", "PostUp", "PreDown", "PostDown")}
