"""Mounts in a mount namespace of our own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MNT_DETACH = 2

#: statvfs(3) and mount(2) number these alike but for the last one.
_KEPT = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
_MS_RELATIME = 1 << 21

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: Path | str, target: Path, filesystem: str = "", flags: int = 0, data: str = "") -> None:
    """Calls mount(2); raises OSError with the target's name."""
    arguments = (os.fsencode(source), os.fsencode(target), filesystem.encode() or None, ctypes.c_ulong(flags))
    if _libc.mount(*arguments, data.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", str(target))


def keep_mounts_to_ourselves() -> None:
    """What is mounted here from now on is seen here alone; what the host mounts later (CVMFS) still appears."""
    mount("none", Path("/"), flags=MS_REC | MS_SLAVE)


def bind(source: Path, target: Path) -> None:
    """Lays the file or folder `source` over `target`, which must exist; raises OSError."""
    mount(source, target, flags=MS_BIND)


def pin(folder: Path, *, read_only: bool = False) -> None:
    """Lays a folder over itself, so that it cannot be renamed or removed here, nor written if `read_only`.

    Who lacks capabilities in this mount namespace's user namespace cannot undo it, also not in namespaces of their own
    (mount_namespaces(7), "locked" mounts). Raises OSError.
    """
    bind(folder, folder)
    if read_only:
        has = os.statvfs(folder).f_flag  # what the file system forbids must not be allowed here
        relative = _MS_RELATIME if has & os.ST_RELATIME else 0
        mount("none", folder, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | has & _KEPT | relative)


def unmount(target: Path) -> None:
    """Takes the uppermost mount away from `target`, also while it is used; raises OSError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"umount: {os.strerror(number)}", str(target))


def hide(folder: Path) -> None:
    """Lays an empty file system over `folder`; raises OSError."""
    mount("none", folder, "tmpfs", data="size=64k,mode=755")
