"""What a knob's value may look like: each parser takes the text and returns the value, or raises ValueError.

The error's text is the rest of a sentence that begins with the value ("is not between 1 and 3600 s").
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

Parser = Callable[[str], Any]

SECONDS = {"s": 1.0, "": 1.0, "ms": 1e-3, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
#: Of a time on a command line. One without a unit is a mistake: `30` was meant as days more often than as seconds.
UNITS_OF_TIME = {unit: seconds for unit, seconds in SECONDS.items() if unit}
MBPS = {"mbit/s": 1.0, "": 1.0, "mbps": 1.0, "kbit/s": 1e-3, "kbps": 1e-3, "gbit/s": 1e3, "gbps": 1e3}

_NUMBER = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)\s*([a-z/]*)", re.IGNORECASE | re.ASCII)
_SSH_HOST = r"(?:[A-Za-z0-9_.][A-Za-z0-9_.@-]*@)?(?:[A-Za-z0-9][A-Za-z0-9._-]*)"
_SSH_URI = r"ssh://(?:[A-Za-z0-9_.][A-Za-z0-9_.@-]*@)?(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_SSH_DESTINATION = re.compile(f"{_SSH_HOST}|{_SSH_URI}", re.ASCII)
_DNS_PORT = 53
_HIGHEST_WEIGHT = 1000
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?", re.ASCII)


def quantity(units: Mapping[str, float], low: float, high: float, *, zero: bool = False) -> Parser:
    """A number with one of `units` (name in lower case to its size in the base unit), in the base unit.

    It lies in `low` to `high`, both in the base unit and included; `zero` is allowed besides where it has a meaning.
    """
    base = next(iter(units))

    def parse(text: str) -> float:
        match = _NUMBER.fullmatch(text)
        if not match or match[2].lower() not in units:
            raise ValueError(f"is not a number with one of the units {', '.join(unit for unit in units if unit)}")
        value = float(match[1]) * units[match[2].lower()]
        if not math.isfinite(value) or not (low <= value <= high or (zero and value == 0)):
            raise ValueError(f"is not {'0, nor ' if zero and low > 0 else ''}between {low:g} and {high:g} {base}")
        return value

    return parse


def integer(low: int, high: int) -> Parser:
    """A whole number, `low` to `high`, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[-+]?[0-9]{1,18}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(f"is not a whole number between {low} and {high}")
        return int(text)

    return parse


def choice(*words: str) -> Parser:
    """One of `words`, whatever its case."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"is none of {', '.join(words)}")
        return text.lower()

    return parse


def list_of(parse: Parser, separators: str = r"[,\s]+") -> Parser:
    """Values between `separators` (by default commas or white space), each once: a tuple in their order."""

    def parse_all(text: str) -> tuple[Any, ...]:
        found = []
        for word in filter(None, map(str.strip, re.split(separators, text))):
            try:
                value = parse(word)
            except ValueError as error:
                raise ValueError(f"has an entry {word!r} that {error}") from None
            if value in found:
                raise ValueError(f"has the entry {word!r} twice")
            found.append(value)
        return tuple(found)

    return parse_all


def host(text: str) -> str:
    """A host name, or an IP address without brackets."""
    if not is_address(text) and (len(text) > 253 or not _HOST.fullmatch(text)):
        raise ValueError("is neither a host name nor an address")
    return text


def is_address(text: str) -> bool:
    """Whether it is an IP address rather than a name."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def domain(text: str) -> str:
    """A domain name, without regard to case and to a dot at its end: in lower case, without it."""
    name = text.lower().rstrip(".").lstrip(".")
    if not _HOST.fullmatch(name) or len(name) > 253 or ".." in name or re.fullmatch(r"[0-9.]+", name, re.ASCII):
        raise ValueError("is not a domain name")
    return name


def endpoint(text: str, *, lowest_port: int = 1) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT, as (host, port)."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", text, re.ASCII)
    if not match or not lowest_port <= int(match[3]) <= 65535:
        raise ValueError(f"is not HOST:PORT or [IPV6]:PORT with a port from {lowest_port} to 65535")
    if match[1]:
        try:
            IPv6Address(match[1])
        except ValueError:
            raise ValueError("has no IPv6 address in its brackets") from None
    elif len(match[2]) > 253 or not _HOST.fullmatch(match[2]):
        raise ValueError("has no host name or IPv4 address before the colon")
    return match[1] or match[2], int(match[3])


class GatewayEndpoint(NamedTuple):
    """A gateway's host and port, and its part of the flows in proportion to others'."""

    host: str
    port: int
    weight: float = 1.0


def gateways(text: str) -> tuple[GatewayEndpoint, ...]:
    """A list of HOST:PORT or [IPV6]:PORT, each once, some perhaps with ;weight=NUMBER behind it."""
    found: tuple[GatewayEndpoint, ...] = list_of(_gateway)(text)
    for gateway in found:
        if sum(gateway[:2] == other[:2] for other in found) > 1:
            raise ValueError(f"has the gateway {gateway.host} port {gateway.port} twice")
    return found


def _gateway(text: str) -> GatewayEndpoint:
    where, semicolon, parameter = text.partition(";")
    host, port = endpoint(where)
    if not semicolon:
        return GatewayEndpoint(host, port)
    match = re.fullmatch(r"weight=([0-9]{1,4}(?:\.[0-9]{1,3})?)", parameter, re.ASCII)
    if not match or float(match[1]) > _HIGHEST_WEIGHT:
        raise ValueError(f"has behind its semicolon no weight=NUMBER from 0 to {_HIGHEST_WEIGHT}")
    return GatewayEndpoint(host, port, float(match[1]))


def name_server(text: str) -> tuple[str, int]:
    """ADDRESS, ADDRESS:PORT or [IPV6]:PORT, as (address, port); port 53 where none is given."""
    try:
        return str(ip_address(text)), _DNS_PORT
    except ValueError:
        pass
    try:
        address, port = endpoint(text)
        return str(ip_address(address)), port
    except ValueError:
        raise ValueError("is not an address, ADDRESS:PORT or [IPV6]:PORT") from None


def ssh_destination(text: str) -> str:
    """What ssh takes for a host: [USER@]HOST, ssh://[USER@]HOST[:PORT], or an alias of ssh_config."""
    if not _SSH_DESTINATION.fullmatch(text):
        raise ValueError("is not [USER@]HOST, or ssh://[USER@]HOST[:PORT] with an IPv6 address in brackets")
    return text


def listening(text: str) -> tuple[str, int]:
    """An address to listen at; port 0 takes any free one."""
    return endpoint(text, lowest_port=0)


def pin(text: str) -> str:
    """The digest of a public key, as openconnect writes it: base64 of 32 bytes (RFC 7469)."""
    if not re.fullmatch(r"pin-sha256:[A-Za-z0-9+/]{43}=", text, re.ASCII):
        raise ValueError("is not pin-sha256: followed by 44 characters of base64")
    return text


def word(text: str) -> str:
    """Printable ASCII without spaces."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("is not one word of printable ASCII")
    return text


def issuer(text: str) -> tuple[str, Path | None]:
    """URL or URL=FILE, as (url, file or None)."""
    match = re.fullmatch(r"(https://[A-Za-z0-9._\[\]:-]+(?:/[A-Za-z0-9._~%/-]*)?)(?:=(.+))?", text, re.ASCII)
    if not match:
        raise ValueError("is not https://HOST/PATH or https://HOST/PATH=FILE")
    return match[1], path(match[2]) if match[2] else None


def pilot_rate(text: str) -> tuple[str, float, float]:
    """PILOT=UP/DOWN, or PILOT=BOTH, in Mbit/s; 0 is no limit."""
    match = re.fullmatch(r"([^=\s]+)=([0-9]+(?:\.[0-9]+)?)(?:/([0-9]+(?:\.[0-9]+)?))?", text, re.ASCII)
    if not match:
        raise ValueError("is not PILOT=MBPS, or PILOT=UP/DOWN in Mbit/s")
    return match[1], float(match[2]), float(match[3] or match[2])


def network(text: str) -> IPv4Network | IPv6Network:
    """ADDRESS or ADDRESS/PREFIX."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError("has bits set behind its prefix" if "host bits" in str(error) else "is no network") from None


def path(text: str) -> Path:
    """A path, `~` expanded, and absolute from here on, wherever a process changes to later."""
    try:
        return Path(os.path.abspath(Path(text).expanduser()))
    except (RuntimeError, ValueError):
        raise ValueError("is not a path: its ~user does not exist") from None
