"""Waiting for what a program writes into its log, by inotify(7): no polling, and an end when the program ends."""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_IN_MODIFY = 0x2
_IN_CLOEXEC = 0o2000000

Found = TypeVar("Found")

#: For what is to happen, however busy the machine is.
WAIT_SECONDS = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


class LogTimeout(RuntimeError):
    """A program did not write in time what it was to write, or ended before."""


def _watch(path: Path) -> int:
    descriptor = _libc.inotify_init1(_IN_CLOEXEC)
    if descriptor < 0 or _libc.inotify_add_watch(descriptor, os.fsencode(path), _IN_MODIFY) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"inotify: {os.strerror(number)}", str(path))
    return int(descriptor)


def wait_for_content(
    file: Path,
    find: Callable[[bytes], Found | None],
    what: str,
    process: subprocess.Popen[bytes] | None = None,
    *,
    timeout_seconds: float = WAIT_SECONDS,
) -> Found:
    """Returns what `find` makes of the content of `file`, which must exist, as soon as that is not None.

    Raises `LogTimeout`, with the end of the file and `what` was missing, after `timeout_seconds` or when `process` has
    ended without it.
    """
    deadline = time.monotonic() + timeout_seconds
    watch = _watch(file)
    ended = os.pidfd_open(process.pid) if process is not None and process.poll() is None else None
    try:
        while True:
            over = process is not None and process.poll() is not None
            content = file.read_bytes()
            found = find(content)
            if found is not None:
                return found
            remaining = deadline - time.monotonic()
            if over or remaining <= 0:
                why = f"ended with {process.returncode}" if over and process else f"was silent for {timeout_seconds} s"
                tail = content[-2000:].decode(errors="replace").strip()
                raise LogTimeout(f"no {what} in {file}, its writer {why}: {tail or 'the file is empty'}")
            ready, _, _ = select.select([watch] if ended is None else [watch, ended], [], [], remaining)
            if watch in ready:
                os.read(watch, 65536)
    finally:
        os.close(watch)
        if ended is not None:
            os.close(ended)


def wait_for_log(
    log: Path,
    pattern: bytes,
    process: subprocess.Popen[bytes] | None = None,
    *,
    timeout_seconds: float = WAIT_SECONDS,
    start_bytes: int = 0,
) -> re.Match[bytes]:
    """Returns the first match of `pattern` in the file `log` from offset `start_bytes` on; see `wait_for_content`."""
    expression = re.compile(pattern, re.MULTILINE)
    return wait_for_content(
        log, lambda content: expression.search(content, start_bytes), repr(pattern), process,
        timeout_seconds=timeout_seconds,
    )  # fmt: skip


class Ledger:
    """A file of JSON objects, one a line, that a service appends to."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.touch()

    def entries(self) -> list[dict[str, Any]]:
        """Returns all entries so far."""
        return self._parse(self.file.read_bytes())

    @staticmethod
    def _parse(content: bytes) -> list[dict[str, Any]]:
        return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], timeout_seconds: float = WAIT_SECONDS
    ) -> dict[str, Any]:
        """Returns the first entry that satisfies `wanted`; raises `LogTimeout`."""
        return wait_for_content(
            self.file, lambda content: next(filter(wanted, self._parse(content)), None), "such entry",
            timeout_seconds=timeout_seconds,
        )  # fmt: skip
