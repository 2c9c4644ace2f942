import sqlite3
import threading
from contextlib import closing

import pytest

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust import database
from htcondor_vpn.gateway.trust.database import Database

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER)"


@pytest.fixture
def writer(tmp_path):
    """One that has just made the database, and writes its first rows."""
    with closing(sqlite3.connect(tmp_path / database.FILE, isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute(SCHEMA)
        yield writer


def test_who_comes_while_another_makes_it_waits(tmp_path, writer):
    threading.Timer(0.5, writer.execute, ["COMMIT"]).start()
    with closing(Database(tmp_path, SCHEMA)) as found:
        assert found.write(("INSERT INTO numbers VALUES (?)", (1,))) == 1
        assert found.rows("PRAGMA journal_mode") == [("wal",)]


def test_who_waits_too_long_says_so(tmp_path, writer):
    with pytest.raises(GatewayFolderError, match=r"tokens.db cannot be used: database is locked"):
        Database(tmp_path, SCHEMA, busy_seconds=0.2)
