"""Who is compared: ways from the node into the world, each in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from benchmarks.processes import cpu_seconds


class Contender(Protocol):
    """A context manager, connected from `with` on and made of the site that it runs on."""

    #: As it stands in the rows.
    name: str
    #: Whether the DMZ has to forward packets for it, which it does only while such a one is measured.
    forwards: bool

    def argv(self, command: Sequence[str]) -> list[str]:
        """The argv that runs `command` behind it, for `site.node` as its ordinary user."""

    def processes(self) -> list[int]:
        """Its processes now, on node and gateway, without a command of `argv` or the far side."""

    def __enter__(self) -> Contender: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> object: ...


class Direct:
    """No tunnel at all: the same link while the DMZ forwards packets."""

    name = "no tunnel"
    forwards = True

    def argv(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def processes(self) -> list[int]:
        return []

    def __enter__(self) -> Direct:
        return self

    def __exit__(self, *_: object) -> None:
        return


def cpu_seconds_of(contender: Contender) -> float:
    """The processor time that its processes at both ends have taken so far."""
    return sum(map(cpu_seconds, contender.processes()))
