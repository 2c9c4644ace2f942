"""wireguard-go from Debian sid, for the tests: that of Debian 12 cannot be used, and is far slower besides.

It is a program of Go's, which needs nothing but an old libc: it runs on this suite as it is.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.testbed.debian_archive import cache_folder, download, failures_told, locked, say, unpack

PACKAGE = "wireguard-go"
SUITE = "sid"


def wireguard_go() -> Path:
    """Returns the path of the program, fetching it (1 MB) if it is not in the cache yet; raises as `prefix` does."""
    folder = cache_folder() / PACKAGE / SUITE
    program = folder / "usr/bin" / PACKAGE
    if program.exists():
        return program
    with failures_told(f"the {PACKAGE} of {SUITE}", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f"{SUITE}.lock"):
            if not program.exists():
                _build(folder)
    return program


def _build(folder: Path) -> None:
    for leftover in folder.parent.glob(f".{SUITE}-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=f".{SUITE}-", dir=folder.parent) as name:
        work = Path(name)
        new = work / "prefix"
        new.mkdir()
        for deb in download(SUITE, PACKAGE, lambda package: package == PACKAGE, work):
            unpack(deb, new, ("./usr/share",))
        run_program([str(new / "usr/bin" / PACKAGE), "--version"])
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(new, folder)
    say(f"{PACKAGE} of Debian {SUITE} is ready")


def main() -> int:
    """Fetches it; returns an exit code."""
    try:
        wireguard_go()
    except VpnError as error:
        say(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
