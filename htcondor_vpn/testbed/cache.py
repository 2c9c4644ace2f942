"""The folders that are made once and kept, since that takes their packages from a mirror and some time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from htcondor_vpn.errors import RunFolderError, VpnError
from htcondor_vpn.linux.programs import ProgramFailed


def cache_folder() -> Path:
    """The folder of them all: `.cache` in a checkout; for an installed package the user's own cache."""
    if os.environ.get("HTCONDOR_VPN_CACHE"):
        return Path(os.environ["HTCONDOR_VPN_CACHE"])
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.cfg").is_file():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "htcondor-vpn")


def make_once(what: str, folder: Path, is_made: Callable[[], bool], make: Callable[[], None]) -> None:
    """Has `make` make `folder`, in which is `what`, unless it `is_made`. Two callers at once make it once.

    Raises `RunFolderError` where the cache cannot be written, `VpnError` with a failed program's words.
    """
    if is_made():
        return
    with _failures_told(what, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_made():
                make()


@contextmanager
def replaced(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yields an empty folder, which takes the place of `folder` at the end, and one for what is needed until then.

    What fails or is interrupted leaves `folder` as it was, and nothing that the next attempt does not remove.
    """
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        work = Path(name)
        new = work / "new"
        new.mkdir()
        for each in (work, new):
            each.chmod(0o755)
        yield new, work
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)


@contextmanager
def _failures_told(what: str, folder: Path) -> Iterator[None]:
    """Turns what fails while `what` is put into `folder` into a `VpnError` that says what can be done about it."""
    try:
        yield
    except ProgramFailed as error:
        said = error.stderr.strip().splitlines() or ["it said nothing"]
        why = next((line for line in said if line.startswith("E: ")), said[-1]).strip().rstrip(".")
        raise VpnError(
            f"{what} cannot be had: {error.argv[0]}: {why}",
            "check the way to the Debian mirror of /etc/apt, or name another one in HTCONDOR_VPN_TEST_MIRROR",
        ) from error
    except OSError as error:
        raise RunFolderError(
            f"{what} cannot be put into {folder}: {error.strerror}",
            "run this once as the owner of that folder, or name another one in HTCONDOR_VPN_CACHE",
        ) from error
