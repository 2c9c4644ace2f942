"""The parent's link to one of its workers: what it is told, without waiting for it, and what it tells of itself."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import Any

from htcondor_vpn.linux.children import Child

_STEADY_SECONDS = 10.0
#: After so many looks without a report a worker is killed.
_MOST_LOOKS = 10

log = logging.getLogger(__name__)


class WorkerLink:
    """Of the worker that counts in the `column` of the seats; a `retired` one takes nothing new."""

    def __init__(self, child: Child, column: int, *, retired: bool = False) -> None:
        self.child, self.column, self.retired = child, column, retired
        self._born = time.monotonic()
        self.ready = False
        self._silent_looks = 0
        self.flows = self.instance = self.memory_bytes = 0
        self.load = 0.0  # of one processor core
        self._cpu: tuple[float, float] | None = None
        self._untold: list[dict[str, Any]] = []

    @property
    def is_steady(self) -> bool:
        """Whether it lives for so long that it did not fail at its start."""
        return time.monotonic() - self._born > _STEADY_SECONDS

    def look(self) -> None:
        """Kills it if it is stopped or stuck; to be called every `REPORT_SECONDS`, since so often it reports.

        Looks are counted, not seconds: when a whole gateway was stopped and goes on, nobody has been silent for long.
        """
        self._silent_looks += 1
        if self._silent_looks == _MOST_LOOKS:
            log.error("worker %d is stopped or stuck, and killed", self.child.pid)
            os.kill(self.child.pid, signal.SIGKILL)

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message, after those that it has not taken yet."""
        self._untold.append(message)
        self.flush()

    def flush(self) -> None:
        """Sends what it takes; what is left is sent again with the next message, or tick."""
        try:
            while self._untold:
                self.child.channel.send(self._untold[0])
                self._untold.pop(0)
        except BlockingIOError:
            # How things stand is told again before long: only orders have to be kept.
            self._untold = [message for message in self._untold if not {"standing", "rates"} & message.keys()]
        except OSError:
            self._untold.clear()  # it has ended

    def heard(self, message: dict[str, Any]) -> None:
        """Takes what it tells of itself."""
        self._silent_looks = 0
        self.flows, self.instance = message["flows"], message["instance"]
        self.memory_bytes = message["memory_bytes"]
        now, cpu = time.monotonic(), message["cpu_seconds"]
        if self._cpu is not None and now > self._cpu[0]:
            self.load = min(1.0, (cpu - self._cpu[1]) / (now - self._cpu[0]))
        self._cpu = now, cpu
