"""jobs.json of the run folder: what is known of jobs now, for everyone who asks and for a broker that takes over."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = "jobs.json"
VERSION = 1

log = logging.getLogger(__name__)


class JobsFile:
    """The one in `run_dir`."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE

    def read(self) -> Any:
        """Returns what another broker has left, whatever it is; raises OSError and ValueError."""
        return json.loads(self._path.read_text(encoding="utf-8"))

    def write(self, policies: Any, jobs: Iterable[str]) -> None:
        """Replaces it in one step; each of `jobs` is JSON. What fails is told in the log, and leaves the file."""
        head = {"version": VERSION, "updated": time.time(), "policies": policies}
        fresh = self._path.with_name(f".{FILE}.{os.getpid()}")
        try:
            try:
                fresh.write_text(f'{json.dumps(head)[:-1]}, "jobs": [{", ".join(jobs)}]}}', encoding="utf-8")
                fresh.chmod(0o600)
                fresh.replace(self._path)
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            log.error("%s cannot be written: %s", self._path, error.strerror)
