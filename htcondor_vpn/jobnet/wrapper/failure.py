"""That a job cannot be run, and the exit code that says why (sysexits.h)."""

from __future__ import annotations

EX_USAGE = 64
EX_OSERR = 71
EX_TEMPFAIL = 75


class CannotRun(Exception):
    """The job cannot be run: the exit code and why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason
