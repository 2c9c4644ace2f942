"""The ledger: what is kept, for how long, and what happens to it when the disk does not take it."""

import socket
import sqlite3
import stat
import threading
import time
from contextlib import closing

import pytest

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.operation import ledger_process
from htcondor_vpn.gateway.operation.ledger import FILE, Ledger, sums
from htcondor_vpn.gateway.operation.ledger_link import LedgerLink
from htcondor_vpn.gateway.operation.ledger_process import Keeper, keep_ledger
from htcondor_vpn.gateway.serving.flows import Record
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.loop import Loop

DAY = 86400.0


def record(number, pilot="alice", *, age=0.0, up=1, down=2, outcome="closed", instance=1):
    return Record(
        instance, number, pilot, time.time() - age, 0.5, "h", 443, "tcp", "192.0.2.1", up, down, outcome
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path, DAY, 1000)) as ledger:
        yield ledger


def test_sums_are_by_pilot_destination_and_outcome(ledger, tmp_path):
    ledger.write([record(1), record(2, outcome="reset"), record(3, "bob", up=100), record(4, age=3600)])
    assert sums(tmp_path, "pilot") == [
        {"pilot": "bob", "flows": 1, "bytes_up": 100, "bytes_down": 2},
        {"pilot": "alice", "flows": 3, "bytes_up": 3, "bytes_down": 6},
    ]
    assert [row["destination"] for row in sums(tmp_path, "destination")] == ["h:443/tcp"] * 2
    assert {row["outcome"] for row in sums(tmp_path, "outcome", pilot="alice")} == {"closed", "reset"}
    assert sums(tmp_path, "pilot", since=time.time() - 60, pilot="alice")[0]["flows"] == 2
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "100%41 what? #1"
    folder.mkdir()
    with closing(Ledger(folder, DAY, 1000)) as ledger:
        ledger.write([record(1)])
        assert sums(folder, "pilot")[0]["flows"] == 1


def test_a_flow_is_one_row_however_often_it_is_told(ledger, tmp_path):
    ledger.write([record(1, up=5, outcome=""), record(1, up=9, outcome="")])
    ledger.write([record(1, up=11)])
    assert sums(tmp_path, "outcome") == [{"outcome": "closed", "flows": 1, "bytes_up": 11, "bytes_down": 2}]


def test_what_is_too_old_stays_in_the_sums(ledger, tmp_path):
    ledger.write([record(1, age=2 * DAY, up=10), record(2, age=2 * DAY, outcome=""), record(3)])
    for _ in range(2):
        ledger.prune()
    assert sums(tmp_path, "destination")[0]["flows"] == 2  # one still runs
    assert sums(tmp_path, "pilot") == [{"pilot": "alice", "flows": 3, "bytes_up": 12, "bytes_down": 6}]
    assert sums(tmp_path, "pilot", pilot="alice") == sums(tmp_path, "pilot")


def test_what_is_too_much_is_deleted_from_the_oldest_on(tmp_path):
    with closing(Ledger(tmp_path, DAY, 10)) as ledger:
        ledger.write([record(number, age=100 - number) for number in range(30)])
        ledger.prune()
        assert sums(tmp_path, "destination")[0]["flows"] == 10
        assert sums(tmp_path, "pilot")[0]["flows"] == 30


def test_a_missing_ledger_is_told(tmp_path):
    with pytest.raises(GatewayFolderError, match="cannot be read"):
        sums(tmp_path, "pilot")


def test_a_gateway_that_has_just_started_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_process, "_WRITE_SECONDS", 60.0)
    parent, child = Channel.pair()
    keeper = threading.Thread(target=keep_ledger, args=(tmp_path, DAY, 1000, child))
    keeper.start()
    assert parent.receive() == ({"ledger": {"waiting": 0, "lost": 0, "error": ""}}, [])
    assert sums(tmp_path, "pilot") == []
    parent.sock.close()
    keeper.join()
    child.sock.close()


def test_while_it_is_closed_nothing_is_heard_that_could_not_be_written(tmp_path):
    """A gateway that is started anew leaves it to the next program: what a worker says, or an operator."""
    loop = Loop()
    ledger = LedgerLink(loop, tmp_path, DAY, 1000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.watch(ours, lambda: ledger.tell({"records": [list(record(2, up=ours.recv(1)[0]))]}))
        ledger.tell({"records": [list(record(1))]})
        theirs.send(b"\1")
        ledger.close()
        assert ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"\1"
        assert sums(tmp_path, "pilot")[0]["flows"] == 1
        ledger.reopen()
        loop.turn()
        ledger.close()
    assert sums(tmp_path, "pilot")[0]["flows"] == 2


def test_what_an_earlier_gateway_left_open_is_ended(tmp_path):
    with closing(Ledger(tmp_path, DAY, 1000)) as ledger:
        ledger.write([record(1, outcome="")])
    keeper = Keeper(tmp_path, DAY, 1000)
    keeper.take({"records": [list(record(2, outcome="", instance=7)), list(record(3, outcome="", instance=8))]})
    keeper.write()
    keeper.take({"gone": 7})
    keeper.write()
    outcomes = {row["outcome"]: row["flows"] for row in sums(tmp_path, "outcome")}
    assert outcomes == {"gateway_lost": 1, "worker_lost": 1, "": 1}


def test_a_locked_ledger_is_written_later(tmp_path, caplog):
    keeper = Keeper(tmp_path, DAY, 1000)
    keeper.write()
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        keeper.take({"records": [list(record(1))]})
        keeper.write()
        assert keeper.state()["waiting"] == 1
        assert "locked" in keeper.state()["error"]
        other.execute("COMMIT")
    keeper.write()
    assert keeper.state() == {"waiting": 0, "lost": 0, "error": ""}
    assert sums(tmp_path, "pilot")[0]["flows"] == 1


@pytest.mark.parametrize("rubbish", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_broken_ledger_is_put_aside(tmp_path, rubbish):
    (tmp_path / FILE).write_bytes(rubbish)
    keeper = Keeper(tmp_path, DAY, 1000)
    keeper.take({"records": [list(record(1))]})
    keeper.write()
    keeper.write()
    assert keeper.state() == {"waiting": 0, "lost": 0, "error": ""}
    assert sums(tmp_path, "pilot")[0]["flows"] == 1
    (aside,) = tmp_path.glob(f"{FILE}.broken-*")
    assert aside.read_bytes() == rubbish


def test_what_cannot_be_written_is_bounded_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_process, "_MAX_WAITING", 10)
    keeper = Keeper(tmp_path / "missing", DAY, 1000)
    for number in range(25):
        keeper.take({"records": [list(record(number))]})
        keeper.write()
    state = keeper.state()
    assert (state["waiting"], state["lost"]) == (10, 15)
    assert state["error"]
    (tmp_path / "missing").mkdir()
    keeper.write()
    assert keeper.state() == {"waiting": 0, "lost": 15, "error": ""}


def test_a_full_disk_is_written_later(tmp_path):
    keeper = Keeper(tmp_path, DAY, 1000)
    keeper.write()
    keeper._ledger._database.execute("PRAGMA max_page_count = 20")  # SQLite says the same of a full disk
    keeper.take({"records": [list(record(number, pilot="x" * 200)) for number in range(500)]})
    keeper.write()
    assert "full" in keeper.state()["error"]
    keeper.write()
    assert keeper.state() == {"waiting": 0, "lost": 0, "error": ""}
    assert sums(tmp_path, "outcome")[0]["flows"] == 500
