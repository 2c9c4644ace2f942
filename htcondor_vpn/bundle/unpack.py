"""Runs on the node, in a bundle that has just been unpacked: makes it ready for its place, and moves it there.

    python3 -ISXutf8 unpack.py NEW FINAL

NEW is a folder beside FINAL. Where FINAL is whole by then (another pilot was faster), NEW is removed; a FINAL that is
not whole any more makes room for it. The exit code is 0 if FINAL can be used, and 1 after one line on stderr if it
cannot, such as where nothing may be executed. Standard library only, Python 3.9.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        (new / COUNT).write_text(f"{_files(new) + 1}\n")
        _place(new, final)
        _try(final)
        _remove_leftovers(final.parent, final)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"htcondor-vpn: {final}: {error}", file=sys.stderr)
        return 1
    return 0


def _place(new: Path, final: Path) -> None:
    """Moves `new` to its place, unless what is there is whole: another pilot may run from that already."""
    gone = new.with_name(f".new{new.name}")
    try:
        with _alone(final.parent):
            if _is_whole(final):
                new.rename(gone)
            else:
                with suppress(FileNotFoundError):
                    final.rename(gone)
                new.rename(final)
    finally:
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Within, no other pilot moves anything, where the file system has locks for folders."""
    descriptor = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_whole(folder: Path) -> bool:
    """As the bundle's head sees it."""
    try:
        return int((folder / COUNT).read_text()) == _files(folder)
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> int:
    """How many there are, without what was compiled meanwhile."""
    found = 0
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += sum(stat.S_ISREG(os.lstat(os.path.join(above, name)).st_mode) for name in names)
    return found


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
