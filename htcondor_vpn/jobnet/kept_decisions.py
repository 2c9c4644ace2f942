"""What was decided for the jobs of the starters that live, also for the next broker if this one dies.

The prepare hook asks before a job's files are fetched; when the job starts, its ad in the sandbox may be another one,
for a job can bring a file of that name. So a decision belongs to the starter, whom the kernel names, and the first
stands: nothing that runs later can change it. It is kept in a file without a name, which only the supervisor and its
brokers hold.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.records import record_of
from htcondor_vpn.linux.peers import started_at

log = logging.getLogger(__name__)

_SWEEP_AT = 256


class Kept(NamedTuple):
    """A job's name (GlobalJobId, or empty) and what was decided for it."""

    job: str
    decision: Decision


class KeptDecisions:
    """The decisions by starter. `memory` is the descriptor of a file that outlives a broker."""

    def __init__(self, memory: int, restored: Callable[[dict[str, Any]], Decision]) -> None:
        self._memory = memory
        self._kept: dict[tuple[int, int], Kept] = {}
        self._sweep_at = _SWEEP_AT
        for line in os.pread(memory, os.fstat(memory).st_size, 0).splitlines():
            try:
                entry = json.loads(line)
                self._kept[entry["pid"], entry["started"]] = Kept(entry["job"], restored(entry["decision"]))
            except (ValueError, LookupError, TypeError) as error:
                # A broker died while it wrote: without its decision that job is refused, and goes back to the queue.
                log.warning("a decision of the former broker cannot be read: %s", error)

    def of(self, starter: int) -> Kept | None:
        """What was decided for the job of the process `starter`, None if nothing was."""
        try:
            return self._kept.get((starter, started_at(starter)))
        except ProcessLookupError:
            return None

    def keep(self, starter: int, job: str, decision: Decision) -> None:
        """Keeps a decision as long as `starter` lives, unless there is one already.

        Raises ProcessLookupError when that process has ended, OSError when it cannot be kept.
        """
        key = starter, started_at(starter)
        if key in self._kept:
            return
        if len(self._kept) >= self._sweep_at:
            self._sweep()
        self._kept[key] = Kept(job, decision)
        self._append([key])

    def _sweep(self) -> None:
        """Forgets the starters that have ended."""
        self._kept = {key: kept for key, kept in self._kept.items() if _lives(*key)}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._kept))
        os.ftruncate(self._memory, 0)
        self._append(self._kept)

    def _append(self, keys: Any) -> None:
        lines = []
        for pid, started in keys:
            job, decision = self._kept[pid, started]
            lines.append(json.dumps({"pid": pid, "started": started, "job": job, "decision": record_of(decision)}))
        if lines:
            os.pwrite(self._memory, ("\n".join(lines) + "\n").encode(), os.fstat(self._memory).st_size)


def _lives(pid: int, started: int) -> bool:
    try:
        return started_at(pid) == started
    except ProcessLookupError:
        return False
