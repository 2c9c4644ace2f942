"""The run folder: where a pilot's processes find each other, and where HTCondor finds our hooks."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.addresses import PILOT_V4
from htcondor_vpn.condor.programs import write_programs
from htcondor_vpn.errors import RunFolderError

#: The interpreter of scripts.
BASH = Path("/bin/bash")

#: How COMMAND, and HTCondor's configuration, find the folder.
ENVIRONMENT_VARIABLE = "HTCONDOR_VPN_RUN_DIR"

_LONGEST_SOCKET_PATH = 107  # unix(7)
_PREFIX = "htcondor-vpn-"
_SOCKET = "broker.sock"
_DETOURS = "r"  # no longer than need be: sockets are in it
_JOBS = "jobs.json"  # what is known of running jobs now; their ledger stays
_OURS = (_SOCKET, _DETOURS, _JOBS, "resolv.conf", "libexec", "run.lock")


class RunFolder:
    """A folder (0700) with `state.json`, `run.log`, `broker.sock`, `resolv.conf` and `libexec/`.

    A folder that we made is removed at the end; in one that was given, the state and the log stay.
    """

    def __init__(self, path: Path | None) -> None:
        """Makes the folder, or a new one below $TMPDIR or /tmp if `path` is None; raises `RunFolderError`."""
        self.temporary = path is None
        try:
            self.path = _temporary_folder() if path is None else path.absolute()
            self.path.mkdir(mode=0o700, exist_ok=True)
            _must_be_ours(self.path)
            self._lock = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(
                f"another `htcondor-vpn run` uses the run folder {path}", "give each its own HTCONDOR_VPN_RUN_DIR"
            ) from error
        except OSError as error:
            if self.temporary and (made := getattr(self, "path", None)) is not None:
                with suppress(OSError):
                    made.rmdir()  # not even a lock could be made in it
            raise _unusable(path or Path(os.environ.get("TMPDIR") or "/tmp"), error) from error  # noqa: S108
        if re.search(r"\s", str(self.path)):
            self.release()
            raise RunFolderError(
                f"the path of the run folder {self.path} has a blank, which the first line of a script cannot have",
                "set HTCONDOR_VPN_RUN_DIR, or TMPDIR, to a path without one",
            )
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET_PATH:
            self.release()
            raise RunFolderError(
                f"the path of the run folder {self.path} is too long for a socket in it",
                "set HTCONDOR_VPN_RUN_DIR, or TMPDIR, to a shorter path",
            )

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def socket(self) -> Path:
        return self.path / _SOCKET

    @property
    def resolv_conf(self) -> Path:
        return self.path / "resolv.conf"

    @property
    def libexec(self) -> Path:
        """The programs that HTCondor runs."""
        return self.path / "libexec"

    @property
    def detours(self) -> Path:
        """For what engines need there that serve a route; it may not exist."""
        return self.path / _DETOURS

    def log_handler(self) -> logging.Handler:
        """A handler that appends to `run.log`; raises `RunFolderError`."""
        try:
            return logging.FileHandler(self.log, encoding="utf-8")
        except OSError as error:
            raise _unusable(self.path, error) from error

    def fill(self, programs: Mapping[str, Path]) -> None:
        """Writes `resolv.conf`, and `libexec/` (condor/programs.py); raises `RunFolderError`."""
        try:
            self.resolv_conf.write_text(f"# the tunnel's resolver\nnameserver {PILOT_V4}\n")
            write_programs(self.libexec, programs, 0o700)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def release(self) -> None:
        """Removes what is ours: all of it in a folder that we made. Idempotent."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)  # what a killed process still writes there is not ours to mend
            return
        for name in _OURS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _must_be_ours(path: Path) -> None:
    """Raises `RunFolderError` for a folder in which another user could lay what HTCondor then runs as us."""
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RunFolderError(f"other users may write into the run folder {path}", f"chmod 700 {path}, as its owner")


def _temporary_folder() -> Path:
    """Makes one below $TMPDIR, or below /tmp where a batch system's $TMPDIR is too long for a socket's path."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(os.fsencode(path / _SOCKET)) > _LONGEST_SOCKET_PATH:
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))  # noqa: S108  (a folder of our own in it)
    return path


def _unusable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError.of(f"the run folder {path}", error, "HTCONDOR_VPN_RUN_DIR (or TMPDIR)")
