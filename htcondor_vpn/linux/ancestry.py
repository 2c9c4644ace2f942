"""Which user namespace lies below which, and who is in it: to know where a peer comes from, and to leave nobody behind.

Source: ioctl_ns(2).
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from collections.abc import Container, Iterator
from contextlib import suppress

_NS_GET_USERNS = 0xB701
_NS_GET_PARENT = 0xB702
_NS_GET_NSTYPE = 0xB703
_NS_GET_OWNER_UID = 0xB704
_DEEPEST = 33  # the kernel nests user namespaces 32 deep
_PASSES = 50  # a process that forks faster than it is found is found in a later pass

Identity = tuple[int, int]


def identity(descriptor: int) -> Identity:
    """Identifies the namespace of an open descriptor: device and inode."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def kind(descriptor: int) -> int:
    """The CLONE_NEW… flag of the namespace of a descriptor; raises OSError (ENOTTY) when it is none."""
    return fcntl.ioctl(descriptor, _NS_GET_NSTYPE)


def owner(namespace: int) -> int:
    """Opens the user namespace that owns the network (mount, …) namespace of a descriptor; raises OSError."""
    return fcntl.ioctl(namespace, _NS_GET_USERNS)


def owner_uid(user_namespace: int) -> int:
    """The account that made the user namespace of a descriptor; raises OSError."""
    return int(struct.unpack("=I", fcntl.ioctl(user_namespace, _NS_GET_OWNER_UID, bytes(4)))[0])


def parent(user_namespace: int) -> int:
    """Opens the parent of a user namespace; raises OSError, EPERM when it is not this process' own or below it."""
    return fcntl.ioctl(user_namespace, _NS_GET_PARENT)


def is_child_of(user_namespace: int, ancestor: Identity) -> bool:
    """Whether `ancestor` is the direct parent of the user namespace."""
    try:
        above = parent(user_namespace)
    except PermissionError:
        return False
    try:
        return identity(above) == ancestor
    finally:
        os.close(above)


def lies_within(user_namespace: int, ancestor: Identity) -> bool:
    """Whether the user namespace is `ancestor` or below it. `user_namespace` stays open."""
    current = os.dup(user_namespace)
    try:
        for _ in range(_DEEPEST):
            if identity(current) == ancestor:
                return True
            try:
                above = parent(current)
            except PermissionError:
                return False
            os.close(current)
            current = above
        return False
    finally:
        os.close(current)


def processes_within(ancestor: Identity) -> Iterator[int]:
    """Yields the processes whose user namespace is `ancestor` or below it, as far as /proc shows them."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            descriptor = os.open(f"/proc/{entry}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended, or is not ours to look at and therefore not in there
        try:
            if lies_within(descriptor, ancestor):
                yield int(entry)
        finally:
            os.close(descriptor)


def kill_within(ancestor: Identity, spare: Container[int] = ()) -> int:
    """Kills (SIGKILL) all processes within a user namespace but those of `spare`; returns how many it found.

    Looks again until a pass finds nobody who was not killed before, so that children made meanwhile do not escape.
    """
    killed: set[int] = set()
    for _ in range(_PASSES):
        found = [pid for pid in processes_within(ancestor) if pid not in spare and pid not in killed]
        if not found:
            break
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    return len(killed)
