"""User, network, mount and PID namespaces: making them, entering them, and what a process may do in them.

Python has these calls from 3.12 on; below that they are made through libc.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from htcondor_vpn.errors import NamespacesUnavailable

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

#: What makes a network of its own for an ordinary user, in the order in which the three can be entered.
KINDS = ("user", "mnt", "net")

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAP_WAKE_ALARM = 35

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *args: object) -> None:
    if getattr(_libc, function)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unshare(flags: int) -> None:
    """Moves this process into new namespaces (unshare(2)); raises OSError. Never in a threaded process."""
    _call("unshare", flags)


def setns(descriptor: int, flags: int = 0) -> None:
    """Moves this process into the namespace of `descriptor` (setns(2)); raises OSError. Never in a threaded process."""
    _call("setns", descriptor, flags)


def prctl(option: int, *args: int) -> None:
    """Calls prctl(2); raises OSError."""
    padded = (*args, 0, 0, 0, 0)[:4]
    _call("prctl", option, *(ctypes.c_ulong(value) for value in padded))


def die_with_parent(signal_number: int) -> None:
    """Has the kernel send `signal_number` to this process when the thread that made it ends (PR_SET_PDEATHSIG).

    A change of user or a gain of capabilities resets it: call it last before exec.
    """
    prctl(PR_SET_PDEATHSIG, signal_number)


def map_own_ids(uid: int, gid: int, *, inside_uid: int | None = None, inside_gid: int | None = None) -> None:
    """Maps the one uid and gid that an ordinary user may map, in a user namespace that this process just made.

    `uid` and `gid` are those of the parent namespace; inside they keep their numbers unless told otherwise.
    """
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid if inside_uid is None else inside_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid if inside_gid is None else inside_gid} {gid} 1")


def new_user_namespace(flags: int, *, inside_uid: int | None = None, inside_gid: int | None = None) -> None:
    """Makes a user namespace and those of `flags`; uid and gid inside are the same as outside unless told otherwise.

    Raises `NamespacesUnavailable`, naming the setting that forbids it.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        unshare(CLONE_NEWUSER | flags)
        map_own_ids(uid, gid, inside_uid=inside_uid, inside_gid=inside_gid)
    except OSError as error:
        raise NamespacesUnavailable(f"user namespaces cannot be made: {error.strerror}", _remedy()) from error


def _remedy() -> str:
    """Which sysctl or limit forbids user namespaces to an ordinary user, as a command for the node's admin."""
    for name, bad, good in (
        ("user.max_user_namespaces", "0", "10000"),
        ("user.max_net_namespaces", "0", "10000"),
        ("user.max_mnt_namespaces", "0", "10000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        path = Path("/proc/sys", *name.split("."))
        try:
            if path.read_text().strip() == bad:
                return f"sysctl {name}={good}"
        except OSError:
            continue  # this kernel does not have it
    return "check user.max_user_namespaces, and whether the container or the security module forbids unshare(2)"


def capabilities_to_programs() -> None:
    """Lets programs that this process executes keep its capabilities (capabilities(7), ambient set).

    An ordinary uid loses its capabilities at exec otherwise, also the one that made the user namespace.
    """
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, each of the two halves
    _call("capget", header, data)
    data[2], data[5] = data[1], data[4]
    _call("capset", header, data)
    permitted = data[1] | data[4] << 32
    for capability in range(64):
        if permitted >> capability & 1:
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def give_up_capabilities() -> None:
    """Gives up every capability but one that allows nothing of interest (CAP_WAKE_ALARM).

    Whom that one is left cannot be traced by processes of the same uid that have none (ptrace(2)).
    """
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    _call("capget", header, data)
    kept = data[4] & 1 << _CAP_WAKE_ALARM - 32
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _call("capset", header, (ctypes.c_uint32 * 6)(0, 0, 0, 0, kept, 0))


def namespace_of(pid: int | str, kind: str) -> tuple[int, int]:
    """Identifies a process' namespace of `kind` (`user`, `net`, `mnt`, `pid`): device and inode."""
    status = os.stat(f"/proc/{pid}/ns/{kind}")
    return status.st_dev, status.st_ino
