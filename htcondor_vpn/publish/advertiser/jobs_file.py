"""jobs.json of the run folder: what the broker says of the job in each slot."""

from __future__ import annotations

import json
import os
import re

from htcondor_vpn.publish.advertiser.checks import MAX_INTEGER, Fields, checked_integer, checked_number

JOBS_FILE = "jobs.json"
MAX_JOBS_BYTES = 1 << 24

# It lets neither a quote nor a line's end into an ad.
_SLOT = re.compile(r"slot[0-9]{1,6}(?:_[0-9]{1,6})?")


class Jobs:
    """Reads a run folder's jobs.json when it has changed."""

    def __init__(self, run_dir: str) -> None:
        self._file = os.path.join(run_dir, JOBS_FILE)
        self._seen: tuple[int, ...] = ()
        self._jobs: dict[str, Fields] = {}

    def by_slot(self) -> dict[str, Fields]:
        """Returns the checked fields of the job in each slot that has one; none where the file says nonsense."""
        try:
            status = os.stat(self._file)
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                self._seen = seen
                with open(self._file, "rb") as file:
                    self._jobs = parse_jobs(file.read(MAX_JOBS_BYTES))
        except (OSError, ValueError):
            self._jobs = {}
        return self._jobs


def parse_jobs(data: bytes) -> dict[str, Fields]:
    """Returns the fields of the job in each slot, each checked; raises ValueError."""
    try:
        accounts = [job["account"] for job in json.loads(data)["jobs"]]
        found: dict[str, Fields] = {}
        for account in accounts:
            slot = account["slot"]
            if account["ended"] is None and isinstance(slot, str) and _SLOT.fullmatch(slot):
                received, sent, *_ = account["totals"]
                connections = sum(moved[-1] for moved in account["classes"].values())
                counts = {"bytes_in": received, "bytes_out": sent, "connections": connections}
                found[slot] = {name: checked_integer(counts, name, 0, MAX_INTEGER) for name in counts}
                for name in ("peak_in_mbps", "peak_out_mbps"):
                    found[slot][name] = checked_number(account, name, 0, 1e9)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not what it should be: {error}") from None
    return found
