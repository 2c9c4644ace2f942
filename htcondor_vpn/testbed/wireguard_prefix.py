"""wireguard-go from Debian sid, for the tests: that of Debian 12 cannot be used, and is far slower besides.

It is a program of Go's, which needs nothing but an old libc: it runs on this suite as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.testbed.cache import cache_folder, make_once, replaced
from htcondor_vpn.testbed.debian_archive import download, unpack
from htcondor_vpn.testbed.set_up_command import exit_code, say

PACKAGE = "wireguard-go"
SUITE = "sid"


def wireguard_go() -> Path:
    """Returns the path of the program, fetching it (1 MB) if it is not in the cache yet; raises as `make_once`."""
    folder = cache_folder() / PACKAGE / SUITE
    program = folder / "usr/bin" / PACKAGE
    make_once(f"the {PACKAGE} of {SUITE}", folder, program.exists, lambda: _build(folder))
    return program


def _build(folder: Path) -> None:
    with replaced(folder) as (new, work):
        for deb in download(SUITE, PACKAGE, lambda package: package == PACKAGE, work):
            unpack(deb, new, ("./usr/share",))
        run_program([str(new / "usr/bin" / PACKAGE), "--version"])
    say(f"{PACKAGE} of Debian {SUITE} is ready")


if __name__ == "__main__":
    sys.exit(exit_code(wireguard_go))
