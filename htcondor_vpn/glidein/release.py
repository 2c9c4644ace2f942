"""HTCondor's programs for a pilot: a folder that they were installed or unpacked into, or a tarball."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.errors import ProgramMissing

_MASTER = "sbin/condor_master"


class Release(NamedTuple):
    """HTCondor's RELEASE_DIR, and where the rest lies in it."""

    folder: Path
    lib: Path
    libexec: Path

    @property
    def master(self) -> Path:
        return self.folder / _MASTER

    @property
    def path(self) -> str:
        """The folders of its programs, as for PATH."""
        return f"{self.folder / 'bin'}:{self.folder / 'sbin'}"


def find_release(source: Path, unpack_to: Path) -> Release:
    """Finds the programs in `source`: a folder, one with `usr` in it, or a tarball, which is unpacked to `unpack_to`.

    Raises `ProgramMissing` where there is no condor_master, and OSError where the disk is full.
    """
    if source.is_file():
        _unpack(source, unpack_to)
        source = unpack_to
    candidates = [source, source / "usr", *(sorted(source.iterdir()) if source.is_dir() else ())]
    for folder in candidates:
        if (folder / _MASTER).exists():
            # Debian's and Red Hat's packages have folders of their own in lib and libexec, tarballs have not.
            lib, libexec = (_own(folder / name) for name in ("lib", "libexec"))
            return Release(folder, lib, libexec)
    raise ProgramMissing(f"there is no {_MASTER} in {source}", "name the folder, or the tarball, of HTCondor")


def _own(folder: Path) -> Path:
    return folder / "condor" if (folder / "condor").is_dir() else folder


def _unpack(tarball: Path, folder: Path) -> None:
    try:
        with tarfile.open(tarball) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="tar")
            else:  # Python before 3.9.17
                archive.extractall(folder)  # noqa: S202  (HTCondor's own programs, which are run next)
    except tarfile.TarError as error:
        raise ProgramMissing(f"{tarball} is no tarball: {error}", "get it again") from error
