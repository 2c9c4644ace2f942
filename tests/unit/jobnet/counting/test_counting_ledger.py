"""The pilot's own ledger of jobs."""

import sqlite3
import sys
from pathlib import Path

import pytest

from htcondor_vpn.jobnet.counting import ledger
from htcondor_vpn.jobnet.counting.account import Account
from htcondor_vpn.jobnet.counting.ledger import Ledger, ledger_path, read, row
from htcondor_vpn.jobnet.counting.recorder import Recorder
from htcondor_vpn.linux.programs import run_program

FLIGHTS = Recorder(()).message()

#: Writes 5,000 jobs and prints by how much the process has grown after the first 500, bytes.
MANY = """
import resource, sys
from pathlib import Path
from htcondor_vpn.jobnet.counting.account import Account
from htcondor_vpn.jobnet.counting.ledger import Ledger, row
def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
book = Ledger(Path(sys.argv[1]))
for number in range(5000):
    if number % 100 == 0:
        book.write([row(Account(n, job=f"ap#{n}.0#1", started=100.0 + n), {"names": "n" * 700})
                    for n in range(number, number + 100)])
    if number == 500:
        before = rss()
print(rss() - before)
"""


def account(number, **more):
    return Account(number, job=f"ap#{number}.0#1", slot="slot1_1", started=100.0 + number, **more)


def test_a_later_row_of_the_same_job_replaces_an_earlier_one(tmp_path):
    book = Ledger(tmp_path / "jobs.db")
    running = account(1, class_names=("campus",))
    book.write([row(running, FLIGHTS)])
    running.finish("ended")
    book.write([row(running, FLIGHTS), row(account(2), FLIGHTS)])
    book.close()
    second, first = read(tmp_path / "jobs.db")
    assert (first["outcome"], second["outcome"], second["ended"]) == ("ended", "", None)
    assert set(first["classes"]) == {"(other)", "campus"}
    assert read(tmp_path / "jobs.db", "#2.0#") == [second]
    assert (tmp_path / "jobs.db").stat().st_mode & 0o777 == 0o600


def test_a_job_may_call_itself_anything(tmp_path):
    """By an ad in any encoding, of which the bytes come here as they are."""
    book = Ledger(tmp_path / "jobs.db")
    name = b"ap#3.0#\xff".decode(errors="surrogateescape")
    book.write([row(Account(3, job=name, slot=name, rule=name, started=1.0), FLIGHTS), row(account(4), FLIGHTS)])
    book.close()
    assert [job["job"] for job in read(tmp_path / "jobs.db")] == ["ap#4.0#1", "ap#3.0#?"]


def test_thousands_of_jobs_do_not_stay_in_memory(tmp_path):
    said = run_program([sys.executable, "-c", MANY, str(tmp_path / "jobs.db")])
    assert int(said) < 1_000_000


def test_jobs_of_which_nobody_will_hear_again_are_lost(tmp_path):
    book = Ledger(tmp_path / "jobs.db")
    book.write([row(account(number), FLIGHTS) for number in (1, 2)])
    book.close()
    again = Ledger(tmp_path / "jobs.db")
    again.end_unknown([(102.0, 2)])
    again.close()
    assert [each["outcome"] for each in read(tmp_path / "jobs.db")] == ["", "lost"]


def test_the_oldest_go_where_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "_MOST_JOBS", 10)
    monkeypatch.setattr(ledger, "_PRUNED_EVERY", 5)
    book = Ledger(tmp_path / "jobs.db")
    for number in range(40):
        done = account(number)
        done.finish("ended")
        book.write([row(done, FLIGHTS)])
    book.close()
    kept = [each["number"] for each in read(tmp_path / "jobs.db")]
    assert kept == list(range(39, 39 - len(kept), -1))
    assert 10 <= len(kept) < 20


def test_another_format_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "jobs.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(sqlite3.DatabaseError, match="format is 99"):
        Ledger(tmp_path / "jobs.db")


def test_each_pilot_has_a_file_of_its_own(tmp_path):
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        run.mkdir()
    assert ledger_path(None, runs[0]) == runs[0] / "jobs.db"
    folder = Path("/shared/ledgers")
    found = {ledger_path(folder, run) for run in runs}
    assert len(found) == 2
    assert {path.parent for path in found} == {folder}
    assert ledger_path(folder, runs[0]) in found
