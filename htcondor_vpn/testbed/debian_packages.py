"""The Debian packages that demo, tests and benchmarks need, installed without the services that some would start.

Standard library only: this is a part of the set-up, before there is a Python environment.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from htcondor_vpn.testbed.steps import SetUpFailed, say, step

#: Debian packages, and how one sees that a machine has one's content from elsewhere.
PACKAGES = {
    "python3-venv": "",
    "iproute2": "ip",
    "nftables": "nft",
    "iptables": "iptables-nft",
    "iputils-ping": "ping",
    "procps": "sysctl",
    "curl": "curl",
    "iperf3": "iperf3",
    "tcpdump": "tcpdump",
    "openssh-client": "ssh",
    "openssh-server": "sshd",
    "openssl": "openssl",
    "squid": "squid",
    "dante-server": "danted",
    "faketime": "faketime",
    "openconnect": "openconnect",
    "ocserv": "ocserv",
    "bubblewrap": "bwrap",
}
BENCHMARK_PACKAGES = {
    "openconnect": "openconnect",
    "ocserv": "ocserv",
    "ocproxy": "vpnns",
    "proxychains4": "proxychains4",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
}

#: For containers, and for other releases' root file systems.
DEBOOTSTRAP_PACKAGES = {"debootstrap": "debootstrap"}

#: Services that such a package would start, now and at each boot. We need the programs only.
SERVICES = {"openssh-server": ("ssh",), "squid": ("squid",), "dante-server": ("danted",), "ocserv": ("ocserv",)}

POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_MARK = "# htcondor-vpn: while its packages are being installed nothing is started"


def missing_packages(wanted: Mapping[str, str]) -> list[str]:
    """Returns those of `wanted` that are neither installed to their end nor there by other means."""
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False).stdout
    except FileNotFoundError:
        said = ""  # no Debian; perhaps the programs are here all the same
    status = dict(line.split(" ", 1) for line in said.splitlines())
    return [
        package
        for package, program in wanted.items()
        if status.get(package) != "installed"
        and (status.get(package, "not-installed") not in ("not-installed", "config-files") or not _has(program))
    ]


def _has(program: str) -> bool:
    if not program:  # python3-venv: Debian's Python comes without it
        return importlib.util.find_spec("ensurepip") is not None
    return shutil.which(program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") is not None


def install(packages: Sequence[str]) -> None:
    """Installs Debian packages without the services they would start; raises `SetUpFailed`."""
    environ = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "LC_ALL": "C.UTF-8"}
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    argv = ["apt-get", *lock, "-y", "-o", "Dpkg::Options::=--force-confold", "install", "--no-install-recommends"]
    simulated = subprocess.run(
        [*argv, "--simulate", *packages], capture_output=True, env={**os.environ, **environ}, timeout=300, check=False
    )
    services = [service for package in packages for service in SERVICES.get(package, ())]
    write_policy(services)
    try:
        if any(Path("/var/lib/dpkg/updates").iterdir()) or _half_installed():
            step("finishing an interrupted installation of packages", ["dpkg", "--configure", "-a"], env=environ)
        if simulated.returncode != 0:
            step("reading the lists of Debian packages", ["apt-get", *lock, "update"], env=environ)
        try:
            step(f"installing Debian packages: {' '.join(packages)}", [*argv, *packages], env=environ)
        except SetUpFailed:  # the lists were too old: the mirror has newer packages only
            step("reading the lists of Debian packages anew", ["apt-get", *lock, "update"], env=environ)
            step("installing the Debian packages again", [*argv, *packages], env=environ)
    finally:
        if not end_policy():
            _keep_off(services)


def _half_installed() -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}\n"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False).stdout
    return bool({"unpacked", "half-configured", "triggers-awaited", "triggers-pending"}.intersection(said.split()))


def write_policy(services: Sequence[str]) -> None:
    """Forbids, until `end_policy`, that packages start their services (invoke-rc.d(8)), if nothing does so already."""
    if services and not POLICY.exists():
        POLICY.write_text(f"#!/bin/sh\n{POLICY_MARK}\n# services: {' '.join(services)}\nexit 101\n")
        POLICY.chmod(0o755)


def end_policy() -> bool:
    """Removes our policy-rc.d, also one that an interrupted run left behind, and keeps its services off.

    Returns False if there is none of ours.
    """
    try:
        text = POLICY.read_text()
    except FileNotFoundError:
        return False
    if POLICY_MARK not in text:
        return False
    _keep_off(text.split("# services:")[1].splitlines()[0].split())
    POLICY.unlink()
    return True


def _keep_off(services: Sequence[str]) -> None:
    """Has services that came with packages of ours not started at the next boot either; an admin may enable them.

    update-rc.d(8) disables them for systemd as well, also where systemd is not running (a container).
    """
    for service in services:
        command = ["update-rc.d", service, "disable"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            say(f"could not keep {service} from being started at boot: {done.stderr.strip()}")
