"""Where a process is in the unified hierarchy of control groups (cgroups(7), version 2)."""

from __future__ import annotations

from pathlib import PurePosixPath


def unified_cgroup(pid: int) -> PurePosixPath | None:
    """The path of a process' control group as seen from our own root, None where there is no unified hierarchy.

    Raises OSError when there is no such process.
    """
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        return next((PurePosixPath(line[3:].rstrip("\n")) for line in lines if line.startswith("0::")), None)
