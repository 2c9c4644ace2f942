"""Running other programs: argv lists, always a deadline, and a failure that says what the program said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from htcondor_vpn.errors import ProgramMissing

#: Where Debian and the rest keep administrators' programs; an ordinary user's PATH often lacks them.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

_preferred: list[str] = []


class ProgramFailed(RuntimeError):
    """A program ended with an error: `argv`, `code` and `stderr` say which and how."""

    def __init__(self, argv: Sequence[str], code: int, stderr: str) -> None:
        super().__init__(
            f"{argv[0]} failed with code {code}: {stderr.strip() or 'it said nothing'} (argv {list(argv)})"
        )
        self.argv, self.code, self.stderr = list(argv), code, stderr


def prefer(folder: Path) -> None:
    """Has programs in `folder` found before those on PATH, in this process and its forked children."""
    _preferred.append(str(folder))


def find_program(name: str, package: str = "") -> str:
    """Returns the path of `name` in a preferred folder, on PATH or in an sbin folder; raises `ProgramMissing`."""
    # An empty part of PATH would mean the current folder, in which anyone's `nft` may lie.
    folders = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part]
    path = shutil.which(name, path=os.pathsep.join((*_preferred, *folders, *SBIN)))
    if path is None:
        raise ProgramMissing(f"there is no `{name}` on this machine", f"install it (Debian: {package or name})")
    return path


def run_program(
    argv: Sequence[str],
    *,
    stdin: str = "",
    timeout_seconds: float = 30,
    preexec: Callable[[], None] | None = None,
) -> str:
    """Runs `argv` and returns its standard output; raises `ProgramFailed` or subprocess.TimeoutExpired."""
    done = subprocess.run(  # noqa: PLW1509
        argv, input=stdin, capture_output=True, text=True, timeout=timeout_seconds, preexec_fn=preexec, check=False
    )
    if done.returncode != 0:
        raise ProgramFailed(argv, done.returncode, done.stderr)
    return done.stdout
