"""All checks, in the order in which one reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.doctor import kernel, namespaces, network, shared, surroundings
from htcondor_vpn.doctor.finding import Finding, unknown


class Asked(NamedTuple):
    """What the user has named: servers as host and port, ssh destinations, folders on shared file systems."""

    gateways: Sequence[tuple[str, int]] = ()
    udp_servers: Sequence[tuple[str, int]] = ()
    login_nodes: Sequence[str] = ()
    shared_folders: Sequence[Path] = ()


_BEFORE: tuple[Callable[[], Finding], ...] = (
    kernel.version,
    surroundings.python,
    surroundings.scratch_folder,
    surroundings.limits,
    namespaces.limits,
    namespaces.security_modules,
)
#: What takes user namespaces, by the name of its finding.
_INSIDE: dict[str, Callable[[], Finding]] = {
    "mount namespaces": namespaces.mount_namespaces,
    "nested namespaces": namespaces.nested_namespaces,
    "catching connections": kernel.catching,
    "holding connects": kernel.holding,
    "job networks": kernel.job_networks,
    "tun devices": kernel.tun,
    "kernel WireGuard": kernel.wireguard,
}
_BESIDES: tuple[Callable[[], Finding], ...] = (
    kernel.seccomp,
    surroundings.wireguard_program,
    surroundings.openconnect_library,
    surroundings.ssh_program,
    surroundings.fuse,
    surroundings.apptainer,
)


def examine(asked: Asked) -> list[Finding]:
    """Makes all checks; to be called in a process without threads."""
    findings = [check() for check in _BEFORE]
    findings.append(user := namespaces.user_namespaces())
    for name, check in _INSIDE.items():
        findings.append(check() if user.works else unknown(name, "not tried, since it takes user namespaces"))
    findings += [check() for check in _BESIDES]
    findings += [network.tcp(*gateway) for gateway in asked.gateways]
    findings += [network.udp(*server) for server in asked.udp_servers]
    findings += [network.ssh(destination) for destination in asked.login_nodes]
    findings += [shared.visibility(folder) for folder in asked.shared_folders]
    return findings
