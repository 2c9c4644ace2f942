"""The steps of a set-up: shown while they go on, and in one line when they fail. Standard library only."""

from __future__ import annotations

import os
import pwd
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]

TIMEOUT_SECONDS = 3600
HEARTBEAT_SECONDS = 5


class SetUpFailed(Exception):
    """The one line that the user gets to read."""


def say(text: str) -> None:
    """Prints one line of progress."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def step(title: str, argv: Sequence[str], *, as_owner: bool = False, env: Mapping[str, str] | None = None) -> None:
    """Runs a long step and shows that it goes on; raises `SetUpFailed`, with the step's last lines printed before."""
    say(title)
    began = shown = time.monotonic()
    tail: deque[str] = deque(maxlen=20)
    process = subprocess.Popen(
        argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **_home(as_owner), **(env or {})}, umask=0o022, close_fds=False,
        **identity(as_owner),
    )  # fmt: skip
    assert process.stdout is not None
    rest = b""
    with process:
        while True:
            ready, _, _ = select.select([process.stdout], [], [], HEARTBEAT_SECONDS)
            if ready:
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                tail.extend(text for line in lines if (text := line.decode(errors="replace").rstrip()))
            now = time.monotonic()
            if now - shown >= HEARTBEAT_SECONDS and tail:
                shown = now
                print(f"  {now - began:3.0f} s  {tail[-1].strip()[:100]}", file=sys.stderr, flush=True)
            if now - began > TIMEOUT_SECONDS:
                process.kill()
    if process.returncode != 0:
        print("\n".join([*tail, rest.decode(errors="replace")]), file=sys.stderr)
        raise SetUpFailed(f"{title}: {argv[0]} failed with code {process.returncode} (its last lines are above)")


def owner() -> int:
    """The uid of the checkout's owner."""
    return CHECKOUT.stat().st_uid


def identity(as_owner: bool) -> dict[str, Any]:
    """What makes root a child process that is the checkout's owner."""
    if not as_owner or os.geteuid() != 0 or owner() == 0:
        return {}
    entry = pwd.getpwuid(owner())
    return {
        "user": entry.pw_uid,
        "group": entry.pw_gid,
        "extra_groups": os.getgrouplist(entry.pw_name, entry.pw_gid),
    }


def _home(as_owner: bool) -> dict[str, str]:
    if not identity(as_owner):
        return {}
    entry = pwd.getpwuid(owner())
    return {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
