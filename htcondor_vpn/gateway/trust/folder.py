"""The gateway's folder: private to its owner, and written so that a crash leaves either the old file or the new one."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from htcondor_vpn.errors import GatewayFolderError


def open_folder(folder: Path | None) -> Path:
    """Makes `folder` (0700) where it is missing and returns it; raises `GatewayFolderError` where it is not private.

    It is None where an account without a home folder has named none.
    """
    if folder is None:
        cause = "this account has no home folder in which the gateway's own could be"
        raise GatewayFolderError(cause, "name one with --dir, or HTCONDOR_VPN_GATEWAY_DIR")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(folder, "chmod 700")
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise GatewayFolderError(f"{folder} cannot be read and written", "check its owner and its mode (0700)")
    except FileExistsError:
        raise GatewayFolderError(f"{folder} is not a folder", "name another with --dir") from None
    except OSError as error:
        raise _failure(folder, "made", error) from error
    return folder


def check_private(path: Path, remedy: str = "chmod 600") -> None:
    """Raises `GatewayFolderError` if anyone but its owner may use `path`, OSError if it cannot be looked at.

    The owner has to be us, or root (whose files an operator may have given us to read).
    """
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise GatewayFolderError(f"{path} belongs to another user (uid {status.st_uid})", "start as its owner")
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise GatewayFolderError(f"{path} is open to other users (mode {mode:04o})", f"{remedy} {path}")


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Replaces `path` by `data` with permissions `mode`; raises `GatewayFolderError`, and then leaves the old file."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
    except OSError as error:
        raise _failure(path, "written", error) from error


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Makes the file `path` of `data` with permissions `mode`; raises `GatewayFolderError`, also if there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        cause = f"{path} exists, and may hold what cannot be had again"
        raise GatewayFolderError(cause, "name another file, or remove this one first") from None
    except OSError as error:
        raise _failure(path, "written", error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(path)
        if isinstance(error, OSError):
            raise _failure(path, "written", error) from error
        raise


def read_bytes(path: Path) -> bytes:
    """Returns the content of `path`; raises `GatewayFolderError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _failure(path, "read", error) from error


def version_of(path: Path) -> tuple[int, int, int]:
    """Returns what tells one content of `path` from another without reading it; raises `GatewayFolderError`."""
    try:
        status = path.stat()
    except OSError as error:
        raise _failure(path, "read", error) from error
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time make the folder's files; the lock ends with the process that holds it."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _failure(folder / "lock", "opened", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _failure(path: Path, verb: str, error: OSError) -> GatewayFolderError:
    return GatewayFolderError(f"{path} cannot be {verb}: {error.strerror}", "check the path, its owner and the disk")
