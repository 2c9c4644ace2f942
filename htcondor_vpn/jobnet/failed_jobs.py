"""Jobs that could not be executed here: whoever of them comes again is held, instead of being tried for ever."""

from __future__ import annotations

_MOST = 1000


class FailedJobs:
    """By their name (GlobalJobId), the latest that there is room for."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def remember(self, job: str, reason: str) -> None:
        """Remembers why `job` could not be executed; one without a name cannot be known again."""
        if not job:
            return
        while len(self._reasons) >= _MOST:
            del self._reasons[next(iter(self._reasons))]
        self._reasons[job] = " ".join(reason.split())

    def forget(self, job: str) -> str | None:
        """Returns why `job` failed, None if it did not; the next time it gets another chance."""
        return self._reasons.pop(job, None)
