"""`htcondor-vpn config`, and the pages of docs/ that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from htcondor_vpn.cli.main import main
from htcondor_vpn.cli.reference import PAGES

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(autouse=True)
def no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDOR_CONFIG", "ONLY_ENV")
    monkeypatch.delenv("HTCONDOR_VPN_CONFIG", raising=False)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_those_of_the_tables(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "docs", page]) == 0
    printed = capsys.readouterr().out
    assert (DOCS / f"{page}.md").read_text() == printed, f"run `htcondor-vpn config docs {page} > docs/{page}.md`"


def test_check_is_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("HTCONDOR_VPN_PROBE_INTERVAL = 2\n")
    assert main(["config", "check", str(tmp_path / "a")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"ok: {tmp_path}/a; 1 of ")
    assert captured.err == ""


def test_check_names_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text(
        "use ROLE: Execute\nHTCONDOR_VPN_PROBE_INTERVAL = 2 parsecs\nHTCONDOR_VPN_GATEWAY = x\n"
    )
    assert main(["config", "check", str(tmp_path / "a")]) == 78
    captured = capsys.readouterr()
    assert captured.out.startswith(f"warning: {tmp_path}/a:1: ")
    first, second = captured.err.splitlines()
    assert first.startswith(f"error: {tmp_path}/a:2: HTCONDOR_VPN_PROBE_INTERVAL = 2 parsecs: ")
    assert second.startswith(f"error: {tmp_path}/a:3: HTCONDOR_VPN_GATEWAY is not a knob: did you mean")


def test_check_goes_on_behind_a_line_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("HTCONDOR_VPN_TOKEN_FILE pilot.token\nHTCONDOR_VPN_JOB_UP_MBPS = fast\n")
    assert main(["config", "check", str(tmp_path / "a")]) == 66
    first, second = capsys.readouterr().err.splitlines()
    assert "write NAME = value" in first
    assert second.startswith(f"error: {tmp_path}/a:2: HTCONDOR_VPN_JOB_UP_MBPS = fast: ")


def test_check_of_an_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("HTCONDOR_VPN_PROBE_INTERVAL = x\n")
    assert main(["config", "check", str(tmp_path / "a"), str(tmp_path / "missing")]) == 66
    assert len(capsys.readouterr().err.splitlines()) == 2
    (tmp_path / "b").write_text("not a line\n")
    assert main(["config", "check", "--config", str(tmp_path / "b")]) == 66
    assert f"{tmp_path}/b:1: " in capsys.readouterr().err


def test_check_without_a_file_takes_what_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "check"]) == 0
    assert "there are no configuration files" in capsys.readouterr().out
    monkeypatch.setenv("_CONDOR_HTCONDOR_VPN_PROBE_INTERVAL", "x")
    assert main(["config", "check"]) == 78
    assert "environment variable" in capsys.readouterr().err
    (tmp_path / "a").write_text("")
    assert main(["config", "check", str(tmp_path / "a")]) == 0
    monkeypatch.setenv("HTCONDOR_VPN_CONFIG", str(tmp_path / "missing"))
    assert main(["config", "check"]) == 66


def test_show_prints_a_configuration_with_its_origins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("BASE = /data\nHTCONDOR_VPN_TOKEN_FILE = $(BASE)/token\n")
    (tmp_path / "b").write_text("HTCONDOR_VPN_PROBE_INTERVAL =\n")
    assert main(["config", "show", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert f"# {tmp_path}/a:2\nHTCONDOR_VPN_TOKEN_FILE = /data/token\n" in shown
    assert f"# {tmp_path}/b:1\nHTCONDOR_VPN_PROBE_INTERVAL = 3\n" in shown
    assert "# the default\nHTCONDOR_VPN_CONNECT_TIMEOUT = 30\n" in shown
    (tmp_path / "again").write_text(shown)
    assert main(["config", "check", str(tmp_path / "again")]) == 0


def test_show_of_a_wrong_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("HTCONDOR_VPN_SECRET = hunter2\n")
    assert main(["config", "show", str(tmp_path / "a")]) == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hunter2" not in captured.err


def test_no_file_of_the_configuration_ruins_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(b"HTCONDOR_VPN_TOKEN_FILE = /\xff\xfe\x1b[2J\n")
    assert main(["config", "show", str(tmp_path / "a")]) == 0
    assert "\x1b" not in capsys.readouterr().out
