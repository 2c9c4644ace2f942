"""Real HTCondor daemons in a folder, made from a Debian suite's packages; the host's own packages stay untouched.

Debian 12 has no HTCondor. Installing a newer suite's on it would bring that suite's libc and systemd along, so the
packages are unpacked into a folder and the programs there are pointed to the libraries beside them (patchelf).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from htcondor_vpn.errors import ProgramMissing, UsageError
from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.testbed.cache import cache_folder, make_once, replaced
from htcondor_vpn.testbed.debian_archive import download, link_programs, unpack
from htcondor_vpn.testbed.set_up_command import exit_code, say

#: trixie has 23.9.6; sid has the newest 25.x.
SUITES = ("trixie", "sid")
DEFAULT_SUITE = "trixie"

#: Raised when what a prefix consists of changes: older ones in a cache are then built anew.
LAYOUT = 1

#: Of the packages that `condor` depends on the daemons need the libraries only: neither Perl nor Python (those would
#: also shadow the host's inside job hooks) nor what manages a machine's accounts, services and disks.
_WANTED = re.compile(r"condor|zlib1g|lib.*")
_UNWANTED = re.compile(
    r"libperl.*|lib.*-perl|libjs-.*|libpython3?(\.\d+)?-(minimal|stdlib)|libpython3-stdlib|libsystemd-shared"
    r"|libcryptsetup.*|libdevmapper.*|libc-gconv.*|libdb5.*|libpam.*|libsemanage.*|libaudit.*|libgdbm.*|libdebconf.*"
    r"|libncurses.*|libreadline.*|libpcre2-(16|32|posix).*|libjq.*|libonig.*|libbsd.*|libmd0|libmount.*|libblkid.*"
)
_LEAVE_OUT = (
    "./usr/share", "./usr/include", "./usr/lib/python3*", "./usr/lib/valgrind", "./usr/lib/systemd", "./var", "./run",
    "./usr/lib/*/gconv", "./usr/lib/*/perl*", "./usr/lib/condor/*.jar", "./usr/lib/condor/*.class",
    "./usr/libexec/condor/annex", "./usr/libexec/condor/adstash", "./usr/libexec/condor/credmon",
)  # fmt: skip
_DAEMONS = "condor_master", "condor_collector", "condor_schedd", "condor_shadow", "condor_startd", "condor_starter"


def prefix(suite: str | None = None) -> Path:
    """Returns the folder with the HTCondor of `suite`, building it if it is not there yet (about 30 MB to fetch).

    Without `suite` it is that of the environment variable HTCONDOR_VPN_TEST_CONDOR, else trixie's.

    Raises `UsageError` for a suite we do not know, and as `make_once`.
    """
    suite = suite or os.environ.get("HTCONDOR_VPN_TEST_CONDOR") or DEFAULT_SUITE
    if suite not in SUITES:
        raise UsageError(f"there is no HTCondor from {suite!r}", f"choose one of {', '.join(SUITES)}")
    folder = cache_folder() / "condor" / suite
    make_once(f"the HTCondor of {suite}", folder, lambda: _is_complete(folder), lambda: _build(suite, folder))
    return folder


def version(folder: Path) -> str:
    """Returns the version of the HTCondor in `folder`, such as `23.9.6`."""
    return str(json.loads((folder / "prefix.json").read_text())["version"])


def _is_complete(folder: Path) -> bool:
    """Whether `folder` was built to its end, at the path where it is now: its programs hold absolute paths."""
    try:
        note = json.loads((folder / "prefix.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(note.get("layout") == LAYOUT and note.get("path") == str(folder))


def _build(suite: str, folder: Path) -> None:
    began = time.monotonic()
    say(f"HTCondor of Debian {suite}: reading the list of packages")
    with replaced(folder) as (new, work):
        debs = download(suite, "condor", is_needed, work)
        say(f"HTCondor of Debian {suite}: unpacking")
        for deb in debs:
            unpack(deb, new, _LEAVE_OUT)
        loader = _link_programs(new, folder)
        found = _check(new, loader)
        note = {"layout": LAYOUT, "path": str(folder), "suite": suite, "version": found}
        (new / "prefix.json").write_text(json.dumps(note) + "\n")
    say(f"HTCondor of Debian {suite}: {found} is ready ({time.monotonic() - began:.0f} s)")


def is_needed(package: str) -> bool:
    """Tells whether a prefix needs `package`, one of those that `condor` depends on."""
    return bool(_WANTED.fullmatch(package)) and not _UNWANTED.fullmatch(package)


def _is_program(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _link_programs(new: Path, final: Path) -> Path:
    """Points the programs under `new` to the libraries they will have beside them under `final`.

    Returns the dynamic loader's path under `new`.
    """
    loaders = sorted((new / "usr/lib").glob("*/ld-linux*.so.*")) or sorted((new / "lib").glob("ld-linux*.so.*"))
    if not loaders:
        raise ProgramMissing("the packages of HTCondor came without a dynamic loader", "report this as a bug")
    loader = loaders[0].relative_to(new)
    libraries = [final / "usr/lib", final / loader.parent, final / loader.parent / "condor", final / "usr/lib/condor"]
    programs = [
        path
        for part in ("usr/bin", "usr/sbin", "usr/libexec/condor")
        for path in sorted((new / part).iterdir())
        if _is_program(path) and ".so" not in path.name
    ]
    link_programs(programs, final / loader, libraries)
    return new / loader


def _check(new: Path, loader: Path) -> str:
    """Makes sure that the daemons find every library, and returns HTCondor's version."""
    libraries = ":".join(str(path) for path in (new / "usr/lib", loader.parent, loader.parent / "condor"))
    for name in _DAEMONS:
        needed = run_program([str(loader), "--library-path", libraries, "--list", str(new / "usr/sbin" / name)])
        missing = re.findall(r"(\S+) => not found", needed)
        if missing:
            raise ProgramMissing(f"{name} lacks {', '.join(missing)}", "_UNWANTED leaves out a package that it needs")
    said = run_program([str(loader), "--library-path", libraries, str(new / "usr/bin/condor_version")])
    found = re.search(r"CondorVersion: (\S+)", said)
    if not found:
        raise ProgramMissing(f"condor_version says {said!r}", "report this as a bug")
    return found[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Builds the prefixes of the suites in `argv`; returns an exit code."""
    return exit_code(lambda: [prefix(suite) for suite in (sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
