import math
import sqlite3
import stat
import threading
import time

import pytest

from htcondor_vpn.errors import GatewayFolderError, TokenNameError
from htcondor_vpn.gateway.trust.tokens import TokenStore


@pytest.fixture
def store(tmp_path):
    with TokenStore(tmp_path) as store:
        yield store


def test_a_token_is_known_until_it_is_revoked(store):
    token = store.add("alice")
    assert store.verify(token).name == "alice"
    assert store.verify(token + "x") is None
    assert store.verify("") is None
    store.revoke("alice")
    assert store.verify(token) is None
    assert store.list() == []


def test_only_a_digest_is_kept(store, tmp_path):
    token = store.add("alice")
    assert len(token) == 43
    store.close()
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert token.encode() not in path.read_bytes()


def test_a_token_expires(store, monkeypatch):
    token = store.add("alice", lifetime_seconds=60)
    assert store.verify(token).name == "alice"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert store.verify(token) is None
    assert [t.expired for t in store.list()] == [True]
    again = store.add("alice", lifetime_seconds=60)
    assert store.verify(again).name == "alice"
    assert len(store.list()) == 1


def test_another_process_changes_them(store, tmp_path):
    with TokenStore(tmp_path) as other:
        token = other.add("bob")
        assert store.verify(token).name == "bob"
        other.revoke("bob")
        assert store.verify(token) is None


def test_writers_at_once(tmp_path):
    errors = []

    def add(number):
        try:
            with TokenStore(tmp_path) as store:
                for each in range(10):
                    store.add(f"pilot-{number}-{each}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with TokenStore(tmp_path) as store:
        tokens = store.list()
    assert len(tokens) == 80
    assert {token.expires for token in tokens} == {math.inf}


@pytest.mark.parametrize("name", ["", "a b", "ä", "a" * 65, "a\nb", "../x y", "-\x00"])
def test_names_that_would_spoil_the_log(store, name):
    with pytest.raises(TokenNameError, match="cannot name a token"):
        store.add(name)


def test_a_name_has_one_token(store):
    token = store.add("alice")
    with pytest.raises(TokenNameError, match="has a token already"):
        store.add("alice")
    assert store.verify(token).name == "alice"
    with pytest.raises(TokenNameError, match="no token of the name bob"):
        store.revoke("bob")


def test_a_broken_database(tmp_path):
    (tmp_path / "tokens.db").write_bytes(b"this is no database, and long enough to tell" * 100)
    with pytest.raises(GatewayFolderError, match="tokens.db cannot be used"):
        TokenStore(tmp_path)


def test_verifying_is_cheap(store):
    token = store.add("alice")
    store.verify(token)
    statements = []
    store._database._connection.set_trace_callback(statements.append)
    for _ in range(100):
        store.verify(token)
    assert set(statements) == {"PRAGMA data_version"}


def test_a_locked_database_is_one_error(store, tmp_path, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.trust.database._BUSY_SECONDS", 0.05)
    blocker = sqlite3.connect(tmp_path / "tokens.db", isolation_level=None)
    with TokenStore(tmp_path) as other:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(GatewayFolderError, match="locked"):
            other.add("alice")
    blocker.close()
