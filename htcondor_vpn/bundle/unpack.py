"""Runs on the node, in a bundle that has just been unpacked: makes it ready for its place, and moves it there.

    python3 -IS unpack.py NEW FINAL

NEW is a folder beside FINAL. Where FINAL is there by then (another pilot was faster), NEW is removed. The exit code is
0 if FINAL can be used, and 1 after one line on stderr if it cannot, such as where nothing may be executed. Standard
library only, Python 3.9.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

#: Stands for the path of the dynamic loader in each program (PT_INTERP), which the kernel wants to be absolute; so long
#: that any path finds room.
PLACEHOLDER = b"/htcondor-vpn-loader" + b"@" * 235

#: What lies packed in the bundle, smaller than the rest.
PACKED = "packed.tar.xz"

#: The file that tells how many there are; while it is missing, or wrong, nobody uses the folder.
COUNT = "count"

_LEFT_SECONDS = 3600
_TRY_SECONDS = 30


def main(new: Path, final: Path) -> int:
    """See above."""
    try:
        _unpack_rest(new)
        _name_loader(new, final)
        _remove(new / "incomplete")
        _count(new)
        try:
            os.rename(new, final)
        except OSError:
            if not (final / COUNT).is_file():
                raise
            shutil.rmtree(new)  # another one was faster
        _remove_leftovers(new)
        _try(final)
    except (OSError, ValueError, tarfile.TarError, subprocess.SubprocessError) as error:
        print(f"htcondor-vpn: {final}: {error}", file=sys.stderr)
        return 1
    return 0


def _unpack_rest(new: Path) -> None:
    packed = new / PACKED
    if packed.exists():
        with tarfile.open(packed) as archive:
            archive.extractall(new)  # noqa: S202  it was checked together with this program
        packed.unlink()


def _name_loader(new: Path, final: Path) -> None:
    loader = os.fsencode(final / "lib/loader")
    if len(loader) >= len(PLACEHOLDER):
        raise ValueError("the path is too long")
    for folder in ("bin", "libexec", "python/bin"):
        for program in sorted((new / folder).glob("*")):
            content = program.read_bytes()
            if PLACEHOLDER in content:
                _replace(program, content.replace(PLACEHOLDER, loader.ljust(len(PLACEHOLDER), b"\0")))


def _replace(program: Path, content: bytes) -> None:
    """By another file of that name: this may be the program that runs us."""
    other = program.with_name(f".{program.name}")
    other.write_bytes(content)
    other.chmod(0o755)
    other.rename(program)


def _remove(folder: Path) -> None:
    """Removes what had stood at the final place, and was not whole any more."""
    if folder.exists():
        shutil.rmtree(folder)


def _count(new: Path) -> None:
    files = sum(len(names) for _, _, names in os.walk(new)) + 1
    compiled = sum(path.is_file() for path in new.glob("**/__pycache__/*"))
    (new / COUNT).write_text(f"{files - compiled}\n")


def _try(final: Path) -> None:
    """Raises OSError where programs cannot be executed (a file system that is mounted noexec)."""
    for program in sorted((final / "bin").glob("nft")):
        subprocess.run([program, "--version"], check=True, capture_output=True, timeout=_TRY_SECONDS)


def _remove_leftovers(new: Path) -> None:
    """Removes what others that were killed meanwhile left behind."""
    for folder in new.parent.glob(".new.*"):
        if time.time() - folder.lstat().st_mtime > _LEFT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
