"""What a gateway's program hands on when it executes itself anew: sockets, processes, and the counts of connections.

So new code and new settings are taken over with no connection lost: the listening sockets stay as they are, and the
former workers remain children, which serve the flows that they have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

_VARIABLE = "HTCONDOR_VPN_GATEWAY_INHERITS"
_CHECK = "check"
_SAID_BYTES = 4096


@dataclass(frozen=True)
class Heir:
    """A worker that goes on: its process id, its channel's descriptor, and the column of its counts."""

    pid: int
    channel: int
    column: int


@dataclass(frozen=True)
class Inheritance:
    """Descriptors of the listening sockets and of the counts' memory; the workers; which generation it hands on.

    `control` is the descriptor of the operator's socket, -1 for none.
    """

    listeners: list[int] = field(default_factory=list)
    seats: int = -1
    workers: list[Heir] = field(default_factory=list)
    generation: int = 0
    started: float = 0.0
    control: int = -1


def inherited() -> Inheritance | None:
    """Returns what a former program of this process has handed on, once."""
    descriptor = os.environ.get(_VARIABLE, "")
    if not descriptor.isdigit():
        return None
    del os.environ[_VARIABLE]
    with open(int(descriptor), encoding="ascii") as file:
        file.seek(0)
        known: dict[str, Any] = json.load(file)
    heirs = [Heir(**_of(Heir, worker)) for worker in known["workers"]]
    found = Inheritance(**{**_of(Inheritance, known), "workers": heirs})
    for number in _descriptors(found):
        os.set_inheritable(number, False)
    return found


def only_checks() -> bool:
    """Tells whether this process shall start only so far as to see whether it could."""
    return os.environ.get(_VARIABLE) == _CHECK


class Check:
    """Our command with its present code and settings, started to see whether it could run. Raises OSError."""

    def __init__(self) -> None:
        with os.fdopen(os.memfd_create("said"), "w+b") as said:  # a pipe that nobody reads would stop it
            self._process = subprocess.Popen(
                _argv(), env={**os.environ, _VARIABLE: _CHECK},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
            )  # fmt: skip
            self._said = os.dup(said.fileno())
        try:
            self.pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            self.kill()
            self.reap()
            raise

    def kill(self) -> None:
        """Ends it."""
        self._process.kill()

    def reap(self) -> tuple[int, str]:
        """Waits for its end; returns its exit code (negative: the signal), and the last of what it said."""
        code = self._process.wait()
        with open(self._said, "rb") as said:
            said.seek(max(0, os.fstat(self._said).st_size - _SAID_BYTES))
            return code, said.read().decode(errors="replace").strip()


def execute_anew(inheritance: Inheritance) -> None:
    """Replaces this program by its command's present code, with `inheritance`; raises OSError where that fails."""
    memory = os.memfd_create("htcondor-vpn-inheritance")
    os.write(memory, json.dumps(asdict(inheritance)).encode("ascii"))
    descriptors = [memory, *_descriptors(inheritance)]
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execve(sys.executable, _argv(), {**os.environ, _VARIABLE: str(memory)})
    finally:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        os.close(memory)


def _of(kind: type[Any], known: dict[str, Any]) -> dict[str, Any]:
    """What this version knows of what another one, perhaps, has handed on."""
    return {field.name: known[field.name] for field in fields(kind) if field.name in known}


def _descriptors(inheritance: Inheritance) -> list[int]:
    control = [] if inheritance.control < 0 else [inheritance.control]
    return [*inheritance.listeners, inheritance.seats, *control, *(worker.channel for worker in inheritance.workers)]


def _argv() -> list[str]:
    """How this program was started (proc(5)): `sys.argv` lacks the interpreter's own options."""
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
    return [sys.executable, *(os.fsdecode(word) for word in words)]
