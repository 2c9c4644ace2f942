"""Changing a simulated host's links and waiting until the kernel has taken notice: a carrier is seen some time after it
is there, and a first packet lost to that costs its sender a second.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.testbed.host import Host

_RTMGRP_LINK, _RTMGRP_IPV6_IFADDR = 0x1, 0x100  # rtnetlink(7)
_SECONDS = 30.0

#: One interface as `ip -json -details address show` describes it.
Interface = dict[str, Any]


def ip(namespace: str, *lines: str) -> None:
    """Runs lines of ip(8) in a named network namespace, empty for the sandbox's own; raises `ProgramFailed`."""
    where = ["-n", namespace] if namespace else []
    run_program([find_program("ip", "iproute2"), *where, "-batch", "-"], stdin="\n".join(lines) + "\n")


def settle(host: Host, late: Callable[[list[Interface]], list[str]], *lines: str) -> None:
    """Runs lines of ip(8) on a host and waits until `late` names no interface any more.

    Raises `ProgramFailed`, or TimeoutError with the names.
    """
    show = [find_program("ip", "iproute2"), "-n", host.name, "-json", "-details", "address", "show"]
    with host.socket(socket.AF_NETLINK, socket.SOCK_RAW) as changes:
        changes.bind((0, _RTMGRP_LINK | _RTMGRP_IPV6_IFADDR))
        if lines:
            ip(host.name, *lines)
        deadline = time.monotonic() + _SECONDS
        while names := late(json.loads(run_program(show))):
            remaining = max(0.0, deadline - time.monotonic())
            if not select.select([changes], [], [], remaining)[0]:
                raise TimeoutError(f"{host.name}: {', '.join(names)} not in use after {_SECONDS:g} s")
            changes.recv(65536)


def not_usable(interfaces: list[Interface]) -> list[str]:
    """Returns the interfaces without carrier, or with an address that is not yet used."""
    return [
        interface["ifname"]
        for interface in interfaces
        if interface["ifname"] != "lo" and (interface["operstate"] != "UP" or _tentative(interface))
    ]


def _tentative(interface: Interface) -> bool:
    return any(address.get("tentative") and address["scope"] == "global" for address in interface["addr_info"])


def not_forwarding(interfaces: list[Interface]) -> list[str]:
    """Returns the bridge ports that are up, in a bridge that is up, and do not forward frames yet."""
    running = {interface["ifname"] for interface in interfaces if "UP" in interface["flags"]}
    return [
        interface["ifname"]
        for interface in interfaces
        if interface.get("master") in running and interface["ifname"] in running
        and interface["linkinfo"]["info_slave_data"]["state"] != "forwarding"
    ]  # fmt: skip
