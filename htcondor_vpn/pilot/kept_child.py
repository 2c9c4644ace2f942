"""A child that a pilot cannot do without: heard, looked at, and started again when it dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from htcondor_vpn.linux.children import Child
from htcondor_vpn.linux.heartbeat import Heartbeat
from htcondor_vpn.pilot.children import Children


class KeptChild:
    """One of `children` as `fork` makes it, from `start` on; `process` is the one of now, if there is one.

    `take` gets each message and its descriptors, `died` a wait status: unless it raises, another one is started.
    """

    def __init__(
        self,
        children: Children,
        heartbeat: Heartbeat,
        fork: Callable[[], Child],
        take: Callable[[dict[str, Any], list[int]], None],
        died: Callable[[int], None],
    ) -> None:
        self._children, self.heartbeat = children, heartbeat
        self._fork, self._take, self._died = fork, take, died
        self.process: Child | None = None

    def start(self) -> None:
        """Starts it; raises OSError."""
        self.process = self._fork()
        self.heartbeat.heard()
        self._children.watch(self.process, self._said, self._ended)

    def tell(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends it a message, if it is there."""
        if self.process is not None:
            self._children.tell(self.process, message, descriptors)

    def look(self) -> None:
        """To be called as often as it says that it lives; see `Heartbeat`."""
        if self.process is not None:
            self.heartbeat.look(self.process.pid)

    def end(self) -> bool:
        """Tells it that this is the end, and waits for its own; returns whether it did all that it had to."""
        assert self.process is not None
        process, self.process = self.process, None
        return self._children.await_end(process) == 0

    def _said(self) -> None:
        assert self.process is not None
        descriptors: list[int] = []
        message = self._children.received(self.process, descriptors)
        if message is not None:
            self.heartbeat.heard()
            self._take(message, descriptors)

    def _ended(self) -> None:
        assert self.process is not None
        while self._children.hears(self.process):  # its last words come before its end
            self._said()
        process, status = self.process, self._children.reap(self.process)
        self.process = None
        self._died(status)
        self._children.restart(process.name, self.start)
