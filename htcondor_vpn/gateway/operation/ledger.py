"""The ledger: which pilot had which flows, in SQLite in the gateway's folder. Bounded in time and in rows.

What is deleted for its age stays in the sums of its pilot, in the table `past`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.serving.flows import Record

FILE = "ledger.db"
_VERSION = 1
_BUSY_SECONDS = 1.0
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS flows (
    instance INTEGER NOT NULL, number INTEGER NOT NULL, pilot TEXT NOT NULL, started REAL NOT NULL,
    seconds REAL NOT NULL, destination TEXT NOT NULL, port INTEGER NOT NULL, protocol TEXT NOT NULL, via TEXT NOT NULL,
    bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL, outcome TEXT NOT NULL, PRIMARY KEY (instance, number)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS flows_by_start ON flows (started);
CREATE TABLE IF NOT EXISTS past (
    pilot TEXT PRIMARY KEY, flows INTEGER NOT NULL, bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
_AGED = "outcome != '' AND started < ?"
_GROUPS = {
    "pilot": "pilot",
    "destination": "pilot, destination || ':' || port || '/' || protocol",
    "outcome": "outcome",
}


class Ledger:
    """The writer's side, for one process. Raises sqlite3.Error and OSError."""

    def __init__(self, folder: Path, keep_seconds: float, keep_flows: int) -> None:
        self.path = folder / FILE
        self._keep_seconds, self._keep_flows = keep_seconds, keep_flows
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"its format is {version}, not {_VERSION}")
            self._database.executescript(_SCHEMA)
            self._database.execute("SELECT max(started) FROM flows")
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def write(self, records: Iterable[Record]) -> None:
        """Writes all of `records` or none; a later one of the same flow replaces an earlier one."""
        marks = ", ".join("?" * len(Record._fields))
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(f"INSERT OR REPLACE INTO flows VALUES ({marks})", records)  # noqa: S608

    def end(self, outcome: str, instance: int | None = None) -> None:
        """Ends the flows that still run, of one process or of all: their process is gone."""
        which = "" if instance is None else " AND instance = ?"
        values = (outcome,) if instance is None else (outcome, instance)
        self._database.execute(f"UPDATE flows SET outcome = ? WHERE outcome = ''{which}", values)  # noqa: S608

    def prune(self) -> None:
        """Deletes what is too old, and the oldest where there is too much; it is kept in the pilots' sums."""
        cutoff = time.time() - self._keep_seconds
        (count,) = self._database.execute("SELECT count(*) FROM flows").fetchone()
        if count > self._keep_flows:
            query = "SELECT started FROM flows ORDER BY started LIMIT 1 OFFSET ?"
            (oldest,) = self._database.execute(query, (count - self._keep_flows,)).fetchone()
            cutoff = max(cutoff, oldest)
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute(
                "INSERT INTO past SELECT pilot, count(*), sum(bytes_up), sum(bytes_down) FROM flows"  # noqa: S608
                f" WHERE {_AGED} GROUP BY pilot ON CONFLICT DO UPDATE SET flows = flows + excluded.flows,"
                " bytes_up = bytes_up + excluded.bytes_up, bytes_down = bytes_down + excluded.bytes_down",
                (cutoff,),
            )
            self._database.execute(f"DELETE FROM flows WHERE {_AGED}", (cutoff,))  # noqa: S608


def sums(folder: Path, by: str, since: float = 0.0, pilot: str = "") -> list[dict[str, Any]]:
    """Returns flows and bytes since a time (Unix seconds; 0 is all that there ever was), most bytes first.

    `by` is pilot, destination or outcome. Raises `GatewayFolderError`.
    """
    group = _GROUPS[by]
    values: list[Any] = [pilot] if pilot else []
    wanted = "pilot = ?" if pilot else "1"
    query = (
        f"SELECT {group}, count(*), sum(bytes_up), sum(bytes_down) FROM flows"  # noqa: S608
        f" WHERE {wanted} AND started >= ? GROUP BY {group}"
    )
    values.append(since)
    if by == "pilot" and not since:
        query = (
            "SELECT pilot, sum(n), sum(up), sum(down) FROM (SELECT pilot, flows n, bytes_up up, bytes_down down"  # noqa: S608
            f" FROM past WHERE {wanted} UNION ALL {query}) GROUP BY pilot"
        )
        values = [*values[:-1], *values]
    names = ["pilot", "destination"] if by == "destination" else [by]
    names += ["flows", "bytes_up", "bytes_down"]
    read_only = f"{(folder / FILE).absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(read_only, uri=True, timeout=10)) as database:
            rows = database.execute(query, values).fetchall()
    except sqlite3.Error as error:
        cause = f"{folder / FILE} cannot be read: {error}"
        raise GatewayFolderError(cause, "a gateway makes it when it runs; check the folder") from error
    return [dict(zip(names, row)) for row in sorted(rows, key=lambda row: row[-1] + row[-2], reverse=True)]
