"""What processes take: their memory and their processor time (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """The children of all of a process' threads; none if it has ended."""
    with suppress(OSError):
        return [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    return []


def tree(pid: int, without: Iterable[int] = ()) -> list[int]:
    """A process and all below it, but for those of `without` and what is below them."""
    found = [pid]
    for child in children(pid):
        if child not in without:
            found += tree(child, without)
    return found


def family(pid: int) -> list[int]:
    """Of a pilot the supervisor `pid` and what shares its program below it (engine, broker), not COMMAND."""
    program = _program(pid)
    commands = [child for child in children(pid) if _program(child) not in (program, "")]  # and their Python is theirs
    return [each for each in tree(pid, commands) if _program(each) == program]


def command_of(pid: int) -> int:
    """The COMMAND of the supervisor `pid`."""
    program = os.readlink(f"/proc/{pid}/exe")
    return next(child for child in children(pid) if _program(child) not in (program, ""))


def _program(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe")
    return ""


def cpu_seconds(pid: int) -> float:
    """User and system time of all its threads so far, from the scheduler's own count in nanoseconds."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def pss_bytes(pid: int) -> int:
    """The memory of a process, what it shares counted in part (proc(5), Pss)."""
    return _rolled_up(pid, "Pss:")


def anonymous_bytes(pid: int) -> int:
    """Its memory without files, what it shares counted in whole.

    Of what the processes of a pilot share since they were forked, each page becomes two when one of them writes to it
    (a count of references, say). So the parts grow for a long time although none of them asks for more.
    """
    return _rolled_up(pid, "Anonymous:")


def _rolled_up(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
