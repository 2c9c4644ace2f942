"""Temporary folders whose owner may be killed: then the next process that makes such a folder removes them.

A folder is in use for as long as somebody holds its lock (flock(2)), which death releases. Who has just made one does
not hold it yet, and may find it gone, taken for one that was left: then it makes another. So nobody loses a folder that
he has got, and none stays without an owner.

The lock has the node's name: on a file system that several nodes see, one may know nothing of the locks of another.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_RANDOM = "[a-z0-9_]{8}"  # tempfile.mkdtemp
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TemporaryFolder:
    """A folder (0700) that is in use for as long as this process lives, or one that keeps the descriptor `lock`."""

    def __init__(self, prefix: str, above: Path) -> None:
        """Makes one with a new name in the folder `above`; raises OSError."""
        lock: int | None = None
        while lock is None:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=above))
            try:
                lock = _lock_new(self.path)
            except OSError:
                with suppress(OSError):
                    self.path.rmdir()
                raise
        self.lock = lock

    def remove(self) -> None:
        """Removes it; what a killed process still writes there stays for `remove_abandoned`. Idempotent."""
        with suppress(OSError, RecursionError):
            folder = os.open(self.path, _FOLDER)
            try:
                _remove(self.path, folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Lets go of the lock."""
        os.close(self.lock)


def remove_abandoned(prefix: str, above: Path) -> list[Path]:
    """Removes what this user's killed processes have left of such folders in `above`, on this node; returns what.

    What cannot be removed stays, and so does what looks alike and belongs to somebody else.
    """
    try:
        names = sorted(os.listdir(above))
    except OSError:
        return []
    found = [above / name for name in names if re.fullmatch(re.escape(prefix) + _RANDOM, name)]
    return [path for path in found if _remove_if_abandoned(path)]


def _lock_name() -> str:
    return f".{os.uname().nodename}.lock"


def _lock_new(folder: Path) -> int | None:
    """Returns the descriptor of a new folder's lock, which is held; None if another process removes the folder."""
    path = folder / _lock_name()
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists():
            return lock
    except BlockingIOError:
        pass
    except OSError:
        path.unlink(missing_ok=True)
        os.close(lock)
        raise
    os.close(lock)
    return None


def _remove_if_abandoned(path: Path) -> bool:
    with suppress(OSError, RecursionError):
        folder = os.open(path, _FOLDER)
        try:
            return os.fstat(folder).st_uid == os.geteuid() and _lock_and_remove(path, folder)
        finally:
            os.close(folder)
    return False


def _lock_and_remove(path: Path, folder: int) -> bool:
    """Raises OSError where somebody has the lock, or where not everything can be removed."""
    try:
        lock = os.open(_lock_name(), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        path.rmdir()  # where it is empty, and not another node's; whoever is about to lock it makes another
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path, folder)
    finally:
        os.close(lock)
    return True


def _remove(path: Path, folder: int) -> None:
    """Removes an opened folder, whatever its path leads to meanwhile, and its lock last; raises OSError."""
    inside = f"/proc/self/fd/{folder}"
    for name in os.listdir(folder):
        below = f"{inside}/{name}"
        if os.path.isdir(below) and not os.path.islink(below):
            _remove_tree(below)
        elif name != _lock_name():
            os.unlink(below)
    with suppress(FileNotFoundError):
        os.unlink(f"{inside}/{_lock_name()}")
    path.rmdir()


def _remove_tree(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except PermissionError:
        _make_writable(folder)
        shutil.rmtree(folder)


def _make_writable(folder: str) -> None:
    """Jobs leave folders that not even their owner may change."""
    os.chmod(folder, 0o700)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _make_writable(entry.path)
