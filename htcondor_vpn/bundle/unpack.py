"""Runs on the node, in a bundle that has just been unpacked: makes it ready for its place, and moves it there.

    python3 -ISXutf8 unpack.py NEW FINAL

NEW is a folder beside FINAL. Where FINAL is there by then (another pilot was faster), NEW is removed. The exit code is
0 if FINAL can be used, and 1 after one line on stderr if it cannot, such as where nothing may be executed. Standard
library only, Python 3.9.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

#: Stands for the path of the dynamic loader in each program (PT_INTERP), which the kernel wants to be absolute; so long
#: that any path finds room.
PLACEHOLDER = b"/htcondor-vpn-loader" + b"@" * 235

#: The file that tells how many there are; while it is missing, or wrong, nobody uses the folder.
COUNT = "count"

#: What the name of a file begins with that is locked while a version runs, and changed when it starts.
USED = ".used."

_VERSION = re.compile(r"\d[\w.+-]*-[0-9a-f]{16}")
_LEFT_SECONDS = 3600
_UNUSED_SECONDS = 30 * 86400
_TRY_SECONDS = 30


def main(new: Path, final: Path) -> int:
    """See above."""
    try:
        _name_loader(new, final)
        _remove(new / "incomplete")
        _count(new)
        try:
            os.rename(new, final)
        except OSError:
            if not (final / COUNT).is_file():
                raise
            shutil.rmtree(new)  # another one was faster
        _try(final)
        _remove_leftovers(final.parent, final)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"htcondor-vpn: {final}: {error}", file=sys.stderr)
        return 1
    return 0


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


def _remove_leftovers(cache: Path, final: Path) -> None:
    """Removes what others that were killed meanwhile left behind, and other versions that nobody has used for long."""
    now = time.time()
    for folder in cache.iterdir():
        if folder.name.startswith(".new.") and now - folder.lstat().st_mtime > _LEFT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
        elif _VERSION.fullmatch(folder.name) and folder != final:
            _remove_unused(folder, now)


def _remove_unused(folder: Path, now: float) -> None:
    mark = folder.with_name(f"{USED}{folder.name}")
    used = max(path.stat().st_mtime for path in (mark, folder) if path.exists())
    if now - used < _UNUSED_SECONDS:
        return
    with mark.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # it runs
        gone = folder.with_name(f".new.{folder.name}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        mark.unlink()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
