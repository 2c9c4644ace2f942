"""The supervisor's children: watched, heard, told, started again when they die, and reaped at their end.

What COMMAND leaves behind becomes our child as well (PR_SET_CHILD_SUBREAPER of prctl(2)), and is reaped in passing.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from htcondor_vpn.errors import by_name
from htcondor_vpn.linux.children import Child
from htcondor_vpn.linux.loop import Loop
from htcondor_vpn.linux.namespaces import PR_SET_CHILD_SUBREAPER, prctl

_RESTART_SECONDS, _LAST_RESTART_SECONDS = 0.2, 5.0
#: A child that lived for so long since its last start did not fail at that.
_STEADY_SECONDS = 30.0
_END_SECONDS = 10.0

log = logging.getLogger(__name__)


class Children:
    """Those that are watched in `loop`. From now on this process adopts its descendants' orphans.

    Once it is `lenient`, an error that a child reports is only written down.
    """

    def __init__(self, loop: Loop) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._loop = loop
        self._pids: set[int] = set()
        self.lenient = False
        self._pauses: dict[str, tuple[float, float]] = {}

    def watch(self, child: Child, said: Callable[[], None], ended: Callable[[], None]) -> None:
        """Calls `said` when a child has said something, or can say nothing more, and `ended` when it has ended."""
        self.keep(child.pid)
        self._loop.watch(child.channel, said)
        self._loop.watch(child.pidfd, ended)

    def hears(self, child: Child) -> bool:
        """Whether a watched child can still say something."""
        return self._loop.watches(child.channel)

    def keep(self, pid: int) -> None:
        """Leaves a child's status to who waits for it, until `let_go`."""
        self._pids.add(pid)

    def let_go(self, pid: int) -> None:
        """Says that a child was reaped, and takes the statuses that it stood in the way of."""
        self._pids.discard(pid)
        self.reap_orphans()

    def received(self, child: Child, descriptors: list[int] | None = None) -> dict[str, Any] | None:
        """Returns a child's message, its descriptors in `descriptors`; raises the `VpnError` that it reports."""
        try:
            received = child.channel.receive()
        except OSError:
            received = None
        if received is None:
            self._loop.forget(child.channel)  # its end comes by the pidfd
            return None
        message, came = received
        if descriptors is not None:
            descriptors.extend(came)
        if "error" in message:
            error = by_name(message["error"], message["cause"], message["remedy"])
            if not self.lenient:
                raise error
            log.error("%s: %s", child.name, error)
            return None
        return message

    @staticmethod
    def tell(child: Child, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a child a message, if it is still there."""
        try:
            child.channel.send(message, descriptors)
        except ConnectionError as error:  # its end comes by the pidfd
            log.warning("the %s could not be told: %s", child.name, error)

    def restart(self, name: str, start: Callable[[], None]) -> None:
        """Has a child started again, after a pause that grows while it dies early."""
        now = time.monotonic()
        pause, last = self._pauses.get(name, (_RESTART_SECONDS, now))
        if now - last > _STEADY_SECONDS:
            pause = _RESTART_SECONDS
        self._pauses[name] = (min(2 * pause, _LAST_RESTART_SECONDS), now)

        def again() -> None:
            try:
                start()
            except OSError as error:  # no more processes for now
                log.error("the %s cannot be started: %s", name, error)
                self.restart(name, start)

        self._loop.after(pause, again)

    def await_end(self, child: Child) -> int:
        """Tells a child that this is the end, waits for its own, and returns its wait status."""
        child.channel.finish()
        poller = select.poll()
        poller.register(child.pidfd, select.POLLIN)
        if not poller.poll(_END_SECONDS * 1e3):
            log.error("the %s does not end, and is killed", child.name)
            os.kill(child.pid, signal.SIGKILL)
        return self.reap(child)

    def reap(self, child: Child) -> int:
        """Waits for a child's end, watches it no more, and returns its wait status."""
        self._loop.forget(child.channel)
        self._loop.forget(child.pidfd)
        status = child.reap()
        self.let_go(child.pid)
        return status

    def reap_orphans(self) -> None:
        """Takes the statuses of COMMAND's descendants that outlived their parents, and so became our children.

        Our own children are reaped where their end is noticed, by their pidfds. Until then one that has ended hides the
        orphans behind it, which would count as processes that still live inside.
        """
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in self._pids:
                return
            os.waitpid(ended.si_pid, 0)
