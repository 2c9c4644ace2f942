"""The gateway's SQLite database: the command line writes while every process of the gateway reads."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from htcondor_vpn.errors import GatewayFolderError

FILE = "tokens.db"
_BUSY_SECONDS, _PAUSE_SECONDS = 10.0, 0.01


class Database:
    """One connection to the database in `folder`, for one thread. What fails raises `GatewayFolderError`.

    It waits for another writer for `busy_seconds`.
    """

    def __init__(self, folder: Path, schema: str, busy_seconds: float = _BUSY_SECONDS) -> None:
        self._path = folder / FILE
        self._version = -1
        with self._failures():
            self._path.touch(mode=0o600)
            self._connection = sqlite3.connect(self._path, timeout=busy_seconds, isolation_level=None)
            try:
                self._let_others_read(busy_seconds)
                self._connection.execute(schema)
            except BaseException:
                self._connection.close()
                raise

    def _let_others_read(self, busy_seconds: float) -> None:
        """Has the database keep a log of what is written (WAL). For this SQLite itself does not wait for others."""
        deadline = time.monotonic() + busy_seconds
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        self._connection.close()

    def changed(self) -> bool:
        """Tells whether anything was written since this was asked last, by another connection or a `write` of ours."""
        with self._failures():
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        changed, self._version = version != self._version, version
        return bool(changed)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Returns what `query` finds."""
        with self._failures():
            return list(self._connection.execute(query, values))

    def write(self, *statements: tuple[str, tuple[Any, ...]]) -> int:
        """Executes all of `statements` or none; returns how many rows the last one changed.

        Raises sqlite3.IntegrityError where a constraint does not hold.
        """
        count = 0
        with self._failures(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                count = self._connection.execute(statement, values).rowcount
        self._version = -1
        return count

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except (OSError, sqlite3.Error) as error:
            cause = f"{self._path} cannot be used: {error}"
            raise GatewayFolderError(cause, "check the folder's owner and the disk") from error
