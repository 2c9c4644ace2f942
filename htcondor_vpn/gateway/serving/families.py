"""Which IP versions this host can carry: so that pilots refuse at once what the gateway could not carry."""

from __future__ import annotations

import errno
import logging
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from htcondor_vpn.gateway.serving.destinations import PublicPolicy
from htcondor_vpn.special_addresses import Address

#: Root name servers; nothing is sent to them, the kernel only looks for a route.
_FAR_AWAY = {"ipv4": (socket.AF_INET, "198.41.0.4"), "ipv6": (socket.AF_INET6, "2001:503:ba3e::2:30")}
_FRESH_SECONDS = 5.0
_UP, _REJECT = 0x1, 0x200  # RTF_UP and RTF_REJECT of linux/route.h
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger(__name__)


class Families:
    """Answers from a look at the routes that is at most five seconds old, or the last that there was room for."""

    def __init__(self, allowed: PublicPolicy) -> None:
        self._policy = allowed
        self._looked = -_FRESH_SECONDS
        self._families: list[str] = []

    def routed(self) -> list[str]:
        """Returns "ipv4", "ipv6", or both: with a default route, or a route to a network that pilots may reach."""
        if time.monotonic() - self._looked >= _FRESH_SECONDS:
            self._looked = time.monotonic()
            left = [name for name in _FAR_AWAY if self._policy.leaves(int(name[-1]))]
            try:
                self._families = [name for name in left if self._has_default(name) or self._has_route(name)]
            except OSError as error:  # that this process has no descriptors left says nothing of the routes
                log.warning("the routes could not be looked at: %s", error.strerror)
        return self._families

    @staticmethod
    def _has_default(name: str) -> bool:
        family, address = _FAR_AWAY[name]
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 53))
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return False
        return True

    def _has_route(self, name: str) -> bool:
        networks = _ipv4_routes() if name == "ipv4" else _ipv6_routes()
        return any(self._policy.refusal_of_range(network) is None for network in networks)


def _ipv4_routes() -> Iterator[Address]:
    """Yields the networks of the routes in /proc/self/net/route (host byte order, proc(5))."""
    for fields in _table("/proc/self/net/route", skip=1):
        if int(fields[3], 16) & (_UP | _REJECT) == _UP:
            yield IPv4Address(struct.pack("=I", int(fields[1], 16)))


def _ipv6_routes() -> Iterator[Address]:
    for fields in _table("/proc/self/net/ipv6_route", skip=0):
        if int(fields[8], 16) & (_UP | _REJECT) == _UP and fields[9] != "lo":
            yield IPv6Address(bytes.fromhex(fields[0]))


def _table(path: str, skip: int) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text(encoding="ascii").splitlines()[skip:]]
    except FileNotFoundError:  # a kernel without this version of IP
        return []
