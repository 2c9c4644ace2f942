"""Runs on the node, in a bundle that has just been unpacked: makes it ready for its place, and moves it there.

    python3 -ISXutf8 unpack.py NEW FINAL

NEW is a folder beside FINAL. Where FINAL is there by then, another pilot was faster, or something has removed or cut
files in it: these are put back. NEW is then removed. The exit code is 0 if FINAL can be used, and 1 after one line on
stderr if it cannot, such as where nothing may be executed. Standard library only, Python 3.9.
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
from contextlib import suppress
from pathlib import Path

#: Stands for the path of the dynamic loader in each program (PT_INTERP), which the kernel wants to be absolute; so long
#: that any path finds room.
PLACEHOLDER = b"/htcondor-vpn-loader" + b"@" * 235

#: The file that tells how many others there are, and bytes in them; while it is missing, or wrong, no start uses these.
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
        _count(new)
        try:
            os.rename(new, final)
        except OSError:
            if not final.is_dir():
                raise
            _mend(new, final)
            shutil.rmtree(new)
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


def _count(new: Path) -> None:
    sizes = [path.stat().st_size for path in _files(new).values()]
    (new / COUNT).write_text(f"{len(sizes)} {sum(sizes)}\n")


def _files(folder: Path) -> dict[str, Path]:
    """The files, by their names below the folder, without what Python has compiled meanwhile."""
    found: dict[str, Path] = {}
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found.update((os.path.relpath(os.path.join(above, name), folder), Path(above, name)) for name in names)
    return found


def _mend(new: Path, final: Path) -> None:
    """Puts into `final` what is missing or of another size there, and takes out what is too much.

    One file after the other, each at once: pilots may be running from there, and others may do the same at this time.
    """
    wanted, there = _files(new), _files(final)
    for name, path in sorted(wanted.items(), key=lambda item: item[0] == COUNT):
        target = final / name
        if name != COUNT and name in there and _size(target) == path.stat().st_size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    for name in there.keys() - wanted.keys():
        (final / name).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """In bytes; -1 for what is no file, or has gone meanwhile."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _try(final: Path) -> None:
    """Raises OSError where programs cannot be executed (a file system that is mounted noexec)."""
    for program in sorted((final / "bin").glob("nft")):
        subprocess.run([program, "--version"], check=True, capture_output=True, timeout=_TRY_SECONDS)


def _remove_leftovers(cache: Path, final: Path) -> None:
    """Removes what others that were killed meanwhile left behind, and other versions that nobody has used for long.

    Several may be at it at once, and a file system may have no locks: what cannot be removed now is left to the next.
    """
    now = time.time()
    for folder in list(cache.iterdir()):
        with suppress(OSError):
            if folder.name.startswith(".new.") and now - folder.lstat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            elif _VERSION.fullmatch(folder.name) and folder != final:
                _remove_unused(folder, now)


def _remove_unused(folder: Path, now: float) -> None:
    """Raises OSError where it still runs, or where that cannot be told."""
    mark = folder.with_name(f"{USED}{folder.name}")
    used = max((path.stat().st_mtime for path in (mark, folder) if path.exists()), default=now)
    if now - used < _UNUSED_SECONDS:
        return
    with mark.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = folder.with_name(f".new.{folder.name}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        mark.unlink()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
