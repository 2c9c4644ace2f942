"""User, network and mount namespaces for ordinary users: whether there are any, and what limits them."""

from __future__ import annotations

import os
from pathlib import Path

from htcondor_vpn.doctor.finding import Finding, bad, good, limited
from htcondor_vpn.doctor.trying import Refused, try_in_namespaces
from htcondor_vpn.linux import mounts
from htcondor_vpn.linux.namespaces import CLONE_NEWNET, CLONE_NEWNS, new_user_namespace

#: What one pilot takes of each kind, and each of its jobs.
_PILOT, _JOB = 1, 1
_JOBS = 64

_WHY = "an ordinary user may then have a network namespace of its own; it gives no privilege outside of it"


def user_namespaces() -> Finding:
    """Whether they can be made, with a network in them."""
    try:
        try_in_namespaces(lambda: "", CLONE_NEWNET)
    except Refused as error:
        return bad("user namespaces", error.cause, f"allow them: {error.remedy or 'see user_namespaces(7)'} ({_WHY})")
    return good("user namespaces", "an ordinary user can make them, with a network in them")


def mount_namespaces() -> Finding:
    """Whether files can be laid over others in them, as over /etc/resolv.conf."""

    def probe() -> str:
        mounts.bind(Path("/dev/null"), Path(os.path.realpath("/etc/resolv.conf")))
        return ""

    try:
        try_in_namespaces(probe, CLONE_NEWNS)
    except Refused as error:
        ask = "have /etc/resolv.conf on the nodes, be it empty, and let users mount in user namespaces of their own"
        return bad("mount namespaces", f"/etc/resolv.conf cannot be replaced in one: {error.cause}", ask)
    return good("mount namespaces", "/etc/resolv.conf can be replaced inside")


def nested_namespaces() -> Finding:
    """Whether there can be others in them: one for each job, and those of unprivileged containers."""

    def probe() -> str:
        new_user_namespace(CLONE_NEWNET)
        return ""

    try:
        try_in_namespaces(probe)
    except Refused as error:
        return bad("nested namespaces", f"none in another: {error.cause}", f"allow nested user namespaces ({_WHY})")
    return good("nested namespaces", "jobs can have their own")


def limits(sysctls: Path = Path("/proc/sys/user")) -> Finding:
    """How many there may be."""
    few = {}
    for kind in ("user", "net", "mnt"):
        try:
            most = int((sysctls / f"max_{kind}_namespaces").read_text())
        except (OSError, ValueError):
            continue
        if most < _PILOT + _JOB * _JOBS:
            few[f"user.max_{kind}_namespaces"] = most
    if 0 in few.values():
        return bad("number of namespaces", ", ".join(f"{name} is {most}" for name, most in few.items()))
    if not few:
        return good("number of namespaces", f"enough for {_JOBS} jobs")
    said = ", ".join(f"{name} is {most}" for name, most in few.items())
    return limited("number of namespaces", said, "; ".join(f"sysctl {name}=10000" for name in few))


def security_modules(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Finding:
    """What confines this process besides."""
    confined, ask = [], ""
    profile = _read(proc / "self/attr/apparmor/current") or ""
    if profile and not profile.startswith("unconfined"):
        confined.append(f"AppArmor's profile {profile}")
    if _read(proc / "sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        confined.append("AppArmor restricts user namespaces")
        ask = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give the program a profile with `userns,`"
    if _read(sys / "fs/selinux/enforce") == "1":
        confined.append("SELinux is enforcing")
    status = _read(proc / "self/status") or ""
    if "\nSeccomp:\t2" in status:
        confined.append("a seccomp filter, as containers have it")
    if not confined:
        return good("security modules", "nothing confines an ordinary process")
    return limited("security modules", "; ".join(confined), ask)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None
