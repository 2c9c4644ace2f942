"""Mounts in a mount namespace of our own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: Path | str, target: Path, filesystem: str = "", flags: int = 0, data: str = "") -> None:
    """Calls mount(2); raises OSError with the target's name."""
    arguments = (str(source).encode(), str(target).encode(), filesystem.encode() or None, ctypes.c_ulong(flags))
    if _libc.mount(*arguments, data.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", str(target))


def keep_mounts_to_ourselves() -> None:
    """What is mounted here from now on is seen here alone; what the host mounts later (CVMFS) still appears."""
    mount("none", Path("/"), flags=MS_REC | MS_SLAVE)


def bind(source: Path, target: Path) -> None:
    """Lays the file or folder `source` over `target`, which must exist; raises OSError."""
    mount(source, target, flags=MS_BIND)


def hide(folder: Path) -> None:
    """Lays an empty file system over `folder`; raises OSError."""
    mount("none", folder, "tmpfs", data="size=64k,mode=755")
