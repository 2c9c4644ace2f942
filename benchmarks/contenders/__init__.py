"""Who is compared: ways from the node into the world, each in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from benchmarks.processes import cpu_seconds
from htcondor_vpn.testbed.site import Site


class Contender(Protocol):
    """A context manager, connected from `with` on and made of the site that it runs on."""

    #: As it stands in the rows.
    name: str

    def turn(self) -> AbstractContextManager[object]:
        """Within, the DMZ's kernel does what this one needs of it: forwards packets, translates addresses.

        Outside it does not: tables of one contender would be on the way of every other one's packets.
        """

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

    def __init__(self, site: Site) -> None:
        self._site = site

    def turn(self) -> AbstractContextManager[object]:
        return self._site.direct_route()

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
