"""`htcondor-vpn job list` and `job show`: from a ledger, and from a pilot's live books."""

import json
from ipaddress import ip_address

import pytest

from htcondor_vpn.cli.main import main
from htcondor_vpn.jobnet.counting.account import Account
from htcondor_vpn.jobnet.counting.ledger import Ledger, row
from htcondor_vpn.jobnet.counting.recorder import Recorder
from htcondor_vpn.jobnet.counting.table import Flow, Moved, Peer
from htcondor_vpn.jobnet.wiring import Totals


def job(number, **more):
    account = Account(number, f"ap#{number}.0#17", f"slot1_{number}", "knobs", False, ("campus",), **more)
    moved = {0: Moved(100, 200, 1, 2, 1), 1: Moved(1_500_000, 2_000_000, 10, 20, 3)}
    account.sample(Totals(2_000_300, 1_500_200, 23, 12), moved, account.began + 2)
    return account


def flights():
    recorder = Recorder(("campus",))
    peer = Peer(ip_address("192.0.2.1"), "tcp", 443)
    recorder.see({Flow(peer, 1): Moved(5, 7, 1, 0), Flow(peer, 0, 6): Moved(60, 0, 1, 0)}, 1.0)
    return recorder


@pytest.fixture
def pilot(tmp_path, monkeypatch):
    """A run folder with one job that runs and one that has ended."""
    monkeypatch.setenv("HTCONDOR_VPN_RUN_DIR", str(tmp_path))
    ended, running = job(1, started=100.0), job(2, started=50.0)
    ended.finish("ended")
    ledger = Ledger(tmp_path / "jobs.db")
    ledger.write([row(each, flights().message()) for each in (ended, running)])
    ledger.close()
    live = {"version": 1, "jobs": [{"account": running.message(), "flights": flights().state()}], "policies": {}}
    (tmp_path / "jobs.json").write_text(json.dumps(live))
    return tmp_path


@pytest.mark.usefixtures("pilot")
def test_running_jobs_come_first(capsys):
    assert main(["job", "list"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["STARTED", "JOB", "SLOT", "STATE"]
    assert first.split()[1:6] == ["ap#2.0#17", "slot1_2", "running", "2.0", "MB"]
    assert second.split()[1:4] == ["ap#1.0#17", "slot1_1", "ended"]


def test_the_jobs_of_an_execution_point_are_there_too(pilot, tmp_path, monkeypatch, capsys):
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("HTCONDOR_VPN_RUN_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("_CONDOR_HTCONDOR_VPN_EXECUTION_POINT_DIR", str(pilot))
    assert main(["job", "list"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["JOB", "ap#2.0#17", "ap#1.0#17"]


@pytest.mark.usefixtures("pilot")
def test_one_job_with_classes_and_flights(capsys):
    assert main(["job", "show", "#1.0#"]) == 0
    told = capsys.readouterr().out
    assert "class        campus: 2.0 MB received, 1.5 MB sent, 3 connections" in told
    assert "talked to    192.0.2.1 tcp port 443, campus: 7 B received, 5 B sent, never answered" in told
    assert "refused      192.0.2.1 tcp port 443: the policy of this slot forbids it, 1 packets" in told


def test_json_of_a_ledger_in_a_folder(pilot, capsys):
    assert main(["job", "list", "--ledger", str(pilot), "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)
    assert [(each["job"], each["bytes_in"]) for each in jobs] == [("ap#2.0#17", 2_000_300), ("ap#1.0#17", 2_000_300)]


@pytest.mark.usefixtures("pilot")
@pytest.mark.parametrize(("name", "code"), [("#9.0#", 95), ("ap#", 64)])
def test_a_name_of_none_or_of_several_is_an_error(name, code, capsys):
    assert main(["job", "show", name]) == code
    assert "`htcondor-vpn job list` lists them" in capsys.readouterr().err


def test_a_damaged_ledger_is_an_error_of_one_line(pilot, capsys):
    (pilot / "jobs.db").write_text("this is no database, but long enough to be read as one, or so one may think" * 20)
    assert main(["job", "list"]) == 94
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["job", "list", "--ledger", str(pilot / "none.db")]) == 94
