"""The pilot's own ledger: each job, what it moved, and in short whom it talked to. SQLite, one file a pilot.

One file each, since SQLite's locks cannot be trusted on shared file systems: with one writer a file there is nothing to
lock. So there is no write-ahead log either, which would need memory that readers on other nodes share.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from htcondor_vpn.jobnet.counting.account import Account

#: The file's name in a run folder; in a folder of ledgers the pilot is part of it.
FILE = "jobs.db"

_VERSION = 1
_BUSY_SECONDS = 5.0
_MOST_JOBS = 100_000
_PRUNED_EVERY = 1000

#: Pages that SQLite keeps in memory: it writes at the end of the file, and 2 MB of them, its default, would look like a
#: leak of the broker's for the first thousands of jobs.
_CACHE_KB = 256
_COLUMNS = (
    "number", "started", "ended", "job", "slot", "rule", "outcome", "bytes_in", "bytes_out", "packets_in",
    "packets_out", "connections", "peak_in_mbps", "peak_out_mbps", "mean_in_mbps", "mean_out_mbps", "resent_segments",
    "classes", "flights",
)  # fmt: skip
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER NOT NULL, started REAL NOT NULL, ended REAL, job TEXT NOT NULL, slot TEXT NOT NULL,
    rule TEXT NOT NULL, outcome TEXT NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
    packets_in INTEGER NOT NULL, packets_out INTEGER NOT NULL, connections INTEGER NOT NULL,
    peak_in_mbps REAL NOT NULL, peak_out_mbps REAL NOT NULL, mean_in_mbps REAL NOT NULL, mean_out_mbps REAL NOT NULL,
    resent_segments INTEGER, classes TEXT NOT NULL, flights TEXT NOT NULL, PRIMARY KEY (started, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_name ON jobs (job);
PRAGMA user_version = {_VERSION};
"""


def ledger_path(folder: Path | None, run_dir: Path) -> Path:
    """Where this pilot's ledger is: in the run folder, or in `folder` under a name that no other pilot has.

    A later broker of the same pilot finds it again by the run folder's own inode.
    """
    if folder is None:
        return run_dir / FILE
    status = run_dir.stat()
    return folder / f"jobs-{socket.gethostname()}-{status.st_dev}-{status.st_ino}.db"


Row = tuple[Any, ...]


class Ledger:
    """The writer's side, for one thread. Raises sqlite3.Error and OSError."""

    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        self._written = 0
        try:
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"its format is {version}, not {_VERSION}")
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
            self._database.executescript(_SCHEMA)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def write(self, rows: Sequence[Row]) -> None:
        """Writes rows; a later one of the same job replaces an earlier one."""
        marks = ", ".join("?" * len(_COLUMNS))
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(f"INSERT OR REPLACE INTO jobs VALUES ({marks})", rows)  # noqa: S608
            self._written += len(rows)
            if self._written >= _PRUNED_EVERY:
                self._written = 0
                self._prune()

    def _prune(self) -> None:
        self._database.execute(
            "DELETE FROM jobs WHERE ended IS NOT NULL AND started <= "
            "(SELECT started FROM jobs ORDER BY started DESC LIMIT 1 OFFSET ?)",
            (_MOST_JOBS,),
        )

    def end_unknown(self, running: Iterable[tuple[float, int]]) -> None:
        """Ends the jobs of which nobody will hear again: all that have no end, but for `running`."""
        found = self._database.execute("SELECT started, number FROM jobs WHERE ended IS NULL").fetchall()
        for key in set(found) - set(running):
            self._database.execute(
                "UPDATE jobs SET ended = ?, outcome = 'lost' WHERE started = ? AND number = ?", (time.time(), *key)
            )


def row(account: Account, flights: Mapping[str, Any]) -> Row:
    """Makes a job's row, of its account and its flight recorder's message in short."""
    totals = account.totals
    classes = {name: moved._asdict() for name, moved in account.by_class().items()}
    return (
        account.number, account.started, account.ended, *map(_text, (account.job, account.slot, account.rule)),
        account.outcome,
        totals.received_bytes, totals.sent_bytes, totals.received_packets, totals.sent_packets, account.connections,
        account.peak_in_mbps, account.peak_out_mbps, account.mean_in_mbps, account.mean_out_mbps,
        account.resent_segments, json.dumps(classes), json.dumps(flights),
    )  # fmt: skip


def _text(name: str) -> str:
    """A name as SQLite takes it: bytes that were no text are `?`. What a job calls itself must not end the books."""
    return name.encode(errors="replace").decode()


def read(path: Path, job: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """Returns the latest jobs of a ledger, the last first: those whose name begins with or contains `job`.

    Raises sqlite3.Error and ValueError.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as database:
        rows = database.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE instr(job, ?) ORDER BY started DESC LIMIT ?",  # noqa: S608
            (job, limit),
        ).fetchall()
    return [entry(each) for each in rows]


def entry(row: Row) -> dict[str, Any]:
    """A row by the names of its columns."""
    found = dict(zip(_COLUMNS, row))
    found["classes"], found["flights"] = json.loads(found["classes"]), json.loads(found["flights"])
    return found


def read_live(file: Path) -> list[dict[str, Any]]:
    """Returns the running jobs of a run folder's `jobs.json`, as `read` does, with their whole flight recorders.

    Raises OSError and ValueError.
    """
    try:
        live = json.loads(file.read_text(encoding="utf-8"))
        return [entry(row(Account.of(each["account"]), each["flights"])) for each in live["jobs"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is damaged: {error}") from error
