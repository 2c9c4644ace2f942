"""The job's namespaces, and what nobody may gain in them."""

from __future__ import annotations

import posix

from htcondor_vpn.jobnet.wrapper.failure import EX_OSERR, CannotRun

#: How many user and network namespaces a job may have at once (namespaces(7), `/proc/sys/user`). The pilot's jobs have
#: one account, whose own limit one of them could reach for all.
MOST_NAMESPACES = (("user", 256), ("net", 64))

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def kernel(name: str, *arguments: int) -> None:
    """Calls unshare(2) or setns(2): as Python has it since 3.12, else through libc. Raises OSError.

    `_ctypes` is what `ctypes` wraps, and takes half of the time. But it does not tell why a call has failed: that is
    made again.
    """
    if hasattr(posix, name):
        getattr(posix, name)(*arguments)
        return
    import _ctypes

    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # libc is in it
    if _ctypes.call_cdeclfunction(_ctypes.dlsym(program, name), arguments) == 0:
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, posix.strerror(number))


def make_namespaces() -> None:
    """Makes the user and network namespace, with the same uid and gid inside as outside."""
    uid, gid = posix.getuid(), posix.getgid()
    try:
        kernel("unshare", CLONE_NEWUSER | CLONE_NEWNET)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise CannotRun(EX_OSERR, f"the job's namespaces cannot be made: {error}") from error
    try:
        for name, most in MOST_NAMESPACES:
            with open(f"/proc/sys/user/max_{name}_namespaces", "w") as file:
                file.write(str(most))
    except OSError:
        return  # a container whose /proc/sys is read-only: the account's own limit holds


def gain_nothing() -> None:
    """Keeps programs with file capabilities, ping for one, from giving the job capabilities over its network.

    In a pilot it is so already (prctl(2), PR_SET_NO_NEW_PRIVS); set-uid programs have no effect in either.
    """
    with open("/proc/self/status") as file:
        if "NoNewPrivs:\t1" in file.read():
            return
    import ctypes

    if ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) != 0:
        raise CannotRun(EX_OSERR, "the job cannot be kept from gaining privileges")
