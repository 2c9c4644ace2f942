"""Apptainer from Debian sid in a folder, for jobs in containers: Debian 12 has none. It works without any privilege.

It takes its own folders from where its program is, but Debian's layout is another than it expects: what it finds
beside /usr elsewhere is moved or linked to where it looks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.testbed.cache import cache_folder, make_once, replaced
from htcondor_vpn.testbed.debian_archive import download, link_programs, unpack
from htcondor_vpn.testbed.set_up_command import exit_code, say

PACKAGE = "apptainer"
SUITE = "sid"
_PACKAGES = {PACKAGE, "libc6", "libseccomp2", "libsqlite3-0"}


def made() -> Path | None:
    """Returns the path of the program, or None if it has not been fetched to where it is now."""
    folder = _folder()
    whole = (folder / "made-for").is_file() and (folder / "made-for").read_text() == str(folder)
    return folder / "usr/bin" / PACKAGE if whole else None


def apptainer() -> Path:
    """Returns the path of the program, fetching it (20 MB) if it is not in the cache yet; raises as `make_once`."""
    folder = _folder()
    make_once(f"the {PACKAGE} of {SUITE}", folder, lambda: made() is not None, lambda: _build(folder))
    return folder / "usr/bin" / PACKAGE


def _folder() -> Path:
    return cache_folder() / "apptainer-prefix" / SUITE


def _build(folder: Path) -> None:
    with replaced(folder) as (new, work):
        for deb in download(SUITE, PACKAGE, _PACKAGES.__contains__, work):
            unpack(deb, new, ("./usr/share", "./usr/lib/*/gconv"))
        for part in ("etc", "var"):
            (new / part).rename(new / "usr" / part)
            (new / "usr/lib" / part).symlink_to(f"../{part}")  # its starter takes usr/lib/TRIPLET for usr/libexec
        loaders = sorted((new / "usr/lib").glob("*/ld-linux*.so.*"))
        if not loaders:
            raise ProgramMissing(f"the packages of {PACKAGE} came without a dynamic loader", "report this as a bug")
        libraries = folder / loaders[0].parent.relative_to(new)
        programs = [new / "usr/bin" / PACKAGE, loaders[0].parent / PACKAGE / "bin/starter"]
        link_programs(programs, libraries / loaders[0].name, [libraries])
        (new / "made-for").write_text(str(folder))
    say(run_program([str(folder / "usr/bin" / PACKAGE), "--version"]).strip() + f" of Debian {SUITE} is ready")


if __name__ == "__main__":
    sys.exit(exit_code(apptainer))
