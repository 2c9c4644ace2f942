"""The run folder: where a pilot's processes find each other, and where HTCondor finds our hooks."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.addresses import PILOT_V4
from htcondor_vpn.condor.programs import write_programs
from htcondor_vpn.config_file import printable
from htcondor_vpn.errors import RunFolderError
from htcondor_vpn.linux.temporary_folders import TemporaryFolder, remove_abandoned
from htcondor_vpn.publish.advertiser.state_file import STATE_FILE, is_alive
from htcondor_vpn.publish.state import State

#: The interpreter of scripts.
BASH = Path("/bin/bash")

#: How COMMAND, and HTCondor's configuration, find the folder.
ENVIRONMENT_VARIABLE = "HTCONDOR_VPN_RUN_DIR"

#: What the names of temporary folders begin with: run folders, and those of HTCondor pilots without GlideinWMS.
RUN_FOLDERS, PILOT_FOLDERS = "htcondor-vpn-", "htvpn-pilot-"

_SHORT = Path("/tmp")  # noqa: S108  (for folders of our own in it)
_LONGEST_SOCKET_PATH = 107  # unix(7)
_SOCKET = "broker.sock"
_LOCK = "run.lock"
_DETOURS = "r"  # no longer than need be: sockets are in it
_JOBS = "jobs.json"  # what is known of running jobs now; their ledger stays
_OURS = (_SOCKET, _DETOURS, _JOBS, "resolv.conf", "libexec")
_UNFINISHED = (f".{STATE_FILE}.*", f".{_JOBS}.*")  # of who was killed as it wrote one
_CLEARING_SECONDS, _LOOK_SECONDS = 20.0, 0.05


class RunFolder:
    """A folder (0700) with `state.json`, `run.log`, `broker.sock`, `resolv.conf` and `libexec/`.

    A folder that we made is removed at the end; in one that was given, the state and the log stay.
    """

    def __init__(self, path: Path | None, belongings: Sequence[TemporaryFolder] = ()) -> None:
        """Makes the folder, or a new one below $TMPDIR or /tmp if `path` is None; raises `RunFolderError`.

        `belongings` are other folders of this pilot, which end with it.
        """
        self._temporary: TemporaryFolder | None = None
        self._belongings = belongings
        try:
            if path is None:
                self._temporary = TemporaryFolder(RUN_FOLDERS, _place())
                self.path, lock = self._temporary.path, self._temporary.lock
            else:
                self.path = path.absolute()
                self.path.mkdir(mode=0o700, exist_ok=True)
                _must_be_ours(self.path)
                lock = _lock(self.path)
        except BlockingIOError as error:
            raise RunFolderError(
                f"another `htcondor-vpn run` uses the run folder {path}", "give each its own HTCONDOR_VPN_RUN_DIR"
            ) from error
        except OSError as error:
            raise _unusable(path or Path(os.environ.get("TMPDIR") or _SHORT), error) from error
        #: Descriptors that say, for as long as anybody holds them, that the folders are in use.
        self.locks = [lock, *(folder.lock for folder in belongings)]
        if (wrong := _wrong_with(str(self.path))) is not None:
            self.release()
            raise RunFolderError(
                f"the path of the run folder {printable(str(self.path), 200)} has {wrong}, which a script cannot name",
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
        return self.path / STATE_FILE

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

    def leave(self) -> None:
        """Removes what is ours, as one of several processes that may do so once the supervisor was killed.

        A folder that was given stays locked until the last of them is done: the next pilot would lose what is its own.
        """
        self._clear()
        if self._temporary is None:
            os.close(self.locks[0])
            with suppress(OSError):  # another one has it, or has removed it
                _unlock(self.path)

    def release(self) -> None:
        """Removes what is ours, as the only process that has it: all of it in a folder that we made. Idempotent."""
        self._clear()
        if self._temporary is None:
            (self.path / _LOCK).unlink(missing_ok=True)

    def _clear(self) -> None:
        for folder in self._belongings:
            folder.remove()
        if self._temporary is not None:
            self._temporary.remove()
            return
        unfinished = (path for pattern in _UNFINISHED for path in self.path.glob(pattern))
        for path in (*(self.path / name for name in _OURS), *unfinished):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_abandoned_folders() -> list[Path]:
    """Removes the folders that killed pilots of this user's have left on this node; returns which."""
    places = {Path(os.environ.get("TMPDIR") or _SHORT), _SHORT}
    return [
        folder for place in sorted(places) for prefix in (RUN_FOLDERS, PILOT_FOLDERS)
        for folder in remove_abandoned(prefix, place)
    ]  # fmt: skip


def _wrong_with(path: str) -> str | None:
    """What in a path keeps it from standing in the first line of a script."""
    if re.search(r"\s", path):
        return "a blank"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "a byte that is no text (UTF-8)"
    return None


def _must_be_ours(path: Path) -> None:
    """Raises `RunFolderError` for a folder in which another user could lay what HTCondor then runs as us."""
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RunFolderError(f"other users may write into the run folder {path}", f"chmod 700 {path}, as its owner")


def _lock(path: Path) -> int:
    """Locks a folder that was given; raises BlockingIOError while another pilot has it, and OSError.

    Of a pilot that was killed it waits for the other processes, which clear up, and would clear away what is ours.
    """
    deadline = time.monotonic() + _CLEARING_SECONDS
    while True:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _is_locked(lock, path):
                return lock
        except FileNotFoundError:
            pass  # who had it has removed it
        except BlockingIOError:
            if _supervisor_is_alive(path) is not False or time.monotonic() > deadline:
                os.close(lock)
                raise
            time.sleep(_LOOK_SECONDS)
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _is_locked(lock: int, path: Path) -> bool:
    """Locks a folder by an opened lock, unless another file has its name by now; raises BlockingIOError, OSError."""
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return os.path.samestat(os.fstat(lock), os.stat(path / _LOCK))


def _unlock(path: Path) -> None:
    """Removes a folder's lock; raises BlockingIOError where somebody keeps it, and OSError.

    Those that were killed together with the supervisor are waited for: they have it until they have ended.
    """
    deadline = time.monotonic() + _CLEARING_SECONDS
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            try:
                if _is_locked(lock, path):
                    os.unlink(path / _LOCK)
                return
            except BlockingIOError:
                if _supervisor_is_alive(path) or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_SECONDS)
    finally:
        os.close(lock)


def _supervisor_is_alive(path: Path) -> bool | None:
    """Says whether the latest supervisor runs; None where there is no word of any."""
    try:
        return is_alive(State.read(path).pid)
    except (OSError, ValueError):
        return None


def _place() -> Path:
    """$TMPDIR, or /tmp where that is too long for the path of a socket, as a batch system's may be."""
    place = Path(tempfile.gettempdir())
    length = len(os.fsencode(place / f"{RUN_FOLDERS}{'x' * 8}" / _SOCKET))
    return place if length <= _LONGEST_SOCKET_PATH else _SHORT


def _unusable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError.of(f"the run folder {path}", error, "HTCONDOR_VPN_RUN_DIR (or TMPDIR)")
