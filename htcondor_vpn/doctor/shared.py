"""A shared file system: of which kind it is, and how long it takes until another host's file is seen here.

For the second somebody has to answer: `echo` runs on another host, in the same folder. Both remove their files.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.doctor.finding import Finding, bad, good, limited, unknown

_PREFIX = ".htcondor-vpn-doctor-"
_PAUSE_SECONDS = 0.02
_SLOW_SECONDS = 5.0

#: Their files are seen by other hosts as soon as they are written.
_AT_ONCE = ("lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "fuse.ceph-fuse")
_LOCAL = ("ext4", "xfs", "tmpfs", "btrfs", "overlay", "zfs")


def visibility(folder: Path, answer_seconds: float = 30.0, mounts: Path = Path("/proc/self/mounts")) -> Finding:
    """How long a file takes to another host and its answer back, if someone answers within `answer_seconds`."""
    name = f"shared folder {folder}"
    kind, options = file_system(folder, mounts)
    said = f"it is {kind}"
    word = secrets.token_hex(8)
    question, reply = folder / f"{_PREFIX}{word}-question", folder / f"{_PREFIX}{word}-answer"
    try:
        question.touch()
        begin = time.monotonic()
        try:
            while time.monotonic() - begin < answer_seconds:
                if reply.name in os.listdir(folder):
                    seconds = time.monotonic() - begin
                    what = f"{said}; a file and the answer to it took {seconds:.1f} s"
                    return good(name, what) if seconds < _SLOW_SECONDS else limited(name, what)
                time.sleep(_PAUSE_SECONDS)
        finally:
            question.unlink()
            with suppress(FileNotFoundError):
                reply.unlink()
    except OSError as error:
        return bad(name, f"{said}; it cannot be written: {error.strerror}", f"let jobs write in {folder}")
    if kind in _LOCAL:
        return bad(name, f"{said}: no other host sees it", "name a folder on a file system that the nodes share")
    bound = _bound(kind, options)
    return unknown(name, f"{said}; {bound}; nobody answered, so the delay was not measured")


def echo(folder: Path, seconds: float) -> int:
    """Answers the questions of other hosts' `visibility` in `folder` for `seconds`; returns how many there were."""
    end = time.monotonic() + seconds
    answered = 0
    open_answers: set[Path] = set()
    while time.monotonic() < end:
        names = os.listdir(folder)
        for name in names:
            reply = folder / name.replace("-question", "-answer")
            if name.startswith(_PREFIX) and name.endswith("-question") and reply not in open_answers:
                reply.touch()
                open_answers.add(reply)
                answered += 1
        for reply in [reply for reply in open_answers if reply.name.replace("-answer", "-question") not in names]:
            reply.unlink(missing_ok=True)  # who asked has removed it, unless we were too late
            open_answers.remove(reply)
        time.sleep(_PAUSE_SECONDS)
    for reply in open_answers:
        reply.unlink(missing_ok=True)
    return answered


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> tuple[str, str]:
    """The kind of file system that a folder lies on, and its mount options (proc_mounts(5))."""
    path, found = os.fsencode(os.path.realpath(folder)), ("unknown", "")
    longest = -1
    for line in mounts.read_bytes().splitlines():
        _, where, kind, options, *_ = line.split(b" ")
        point = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), where)
        if (path == point or path.startswith(point.rstrip(b"/") + b"/")) and len(point) >= longest:
            longest, found = len(point), (os.fsdecode(kind), os.fsdecode(options))
    return found


def _bound(kind: str, options: str) -> str:
    """How old a folder's listing may be, as nfs(5) has it."""
    if kind in _AT_ONCE:
        return "others' files are usually seen at once"
    if not kind.startswith("nfs"):
        return "how late others' files are seen depends on it"
    words = dict(word.partition("=")[::2] for word in options.split(","))
    if "noac" in words or "lookupcache=none" in options:
        return "others' files are seen at once"
    return f"others' files are seen after {words.get('acdirmax', '60')} s at the latest (acdirmax)"
