"""`htcondor-vpn job policy`, and what `config check` says of a policy."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from htcondor_vpn.cli.main import main

pytest.importorskip("classad2", reason="a policy's expressions need HTCondor's Python bindings")

POLICY = """
[class campus]
destinations = 10.0.0.0/8
[rule held]
when = TARGET.Owner == "eve"
hold = ask us first
[rule big]
when = TARGET.RequestCpus >= MY.Cpus / 2
up_mbps = 10 * TARGET.RequestCpus
allow = class campus
"""
JOB = {
    "Owner": "alice",
    "RequestCpus": "/Expr(1 + 3)/",
    "Args": 'a "b"\n',
    "Rank": 0.5,
    "X": None,
    "L": [1, {"a": True}],
}


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HTCONDOR_VPN_CONFIG", str(tmp_path / "none"))
    (tmp_path / "none").write_text("")
    path = tmp_path / "site.policy"
    path.write_text(POLICY)
    return path


def explained(policy: Path, job: str, machine: str | None = None) -> int:
    ad = policy.parent / "job.ad"
    ad.write_text(job)
    more = []
    if machine is not None:
        (policy.parent / "slot.ad").write_text(machine)
        more = [str(policy.parent / "slot.ad")]
    return main(["job", "policy", "explain", "--policy", str(policy), str(ad), *more])


@pytest.mark.parametrize("job", [json.dumps([JOB]), json.dumps(JOB), 'Owner = "alice"\nRequestCpus = 1 + 3\n\n'])
def test_rule_and_sources_are_told(policy: Path, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(policy, job, "Cpus = 8\n") == 0
    out = capsys.readouterr().out
    assert f'   false      rule held ({policy}:4): TARGET.Owner == "eve"\n-> true       rule big ({policy}:7): ' in out
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line and line[0] not in " -"}
    assert lines["up.ceiling_mbps"] == f"40 rule big ({policy}:9)"
    assert lines["allowed"] == f"10.0.0.0/8 rule big ({policy}:10)"
    assert lines["weight"] == "8 the slot's Cpus"
    assert lines["down.ceiling_mbps"] == "none HTCONDOR_VPN_JOB_DOWN_MBPS (the default)"


def test_without_a_slots_ad(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(policy, 'Owner = "alice"\nRequestCpus = 4') == 0
    out = capsys.readouterr().out
    assert "no slot's ad is given" in out
    assert "   undefined  rule big" in out
    assert "-> no rule matches: the knobs decide" in out


def test_job_that_is_held(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(policy, 'Owner = "eve"') == 3
    assert "held (HoldReasonCode 19, HoldReasonSubCode 11): ask us first (rule held)" in capsys.readouterr().out


def test_job_that_is_sent_elsewhere(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text("[rule a]\nup_mbps = TARGET.Nothing\n")
    assert explained(policy, 'Owner = "eve"') == 3
    assert "goes back to the queue (code 302): " in capsys.readouterr().out


def test_of_many_rules_some_are_shown(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "\n".join(f"[rule r{number}]\nwhen = TARGET.X == {number}" for number in range(100))
    policy.write_text(rules)
    assert explained(policy, "X = 90") == 0
    out = capsys.readouterr().out
    assert "   … and 50 more rules that do not match\n-> true       rule r90" in out
    assert out.count("\n   false") == 40


def test_job_ad_from_stdin(policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"VpnUpMbps = 3")))
    assert main(["job", "policy", "explain", "-"]) == 0
    assert "the job's VpnUpMbps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("A = 1\n\nB = 2\n", 64, "there are 2 ads where one is expected"),
        ("", 64, "there are 0 ads where one is expected"),
        ("[1]", 64, "the JSON is no ad"),
        ("{", 64, "is no ad"),
    ],
)
def test_what_is_no_ad(policy: Path, text: str, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(policy, text) == code
    assert says in capsys.readouterr().err


def test_missing_file(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "policy", "explain", str(policy.parent / "no")]) == 66
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


def test_check(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "policy", "check", str(policy)]) == 0
    assert capsys.readouterr().out == f"ok: {policy}\n"
    policy.write_text("[rule a]\nup_mbps = -1\nwen = true\n")
    assert main(["job", "policy", "check", str(policy)]) == 91
    err = capsys.readouterr().err
    assert f"error: {policy}:3: wen is no key of [rule a]: did you mean when?" in err
    assert f"error: {policy}:2: up_mbps = -1 (of rule a) is -1" in err


def test_config_check_looks_into_the_policy(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = policy.parent / "config"
    config.write_text(f"HTCONDOR_VPN_JOB_POLICY_FILE = {policy}\n")
    assert main(["config", "check", str(config)]) == 0
    policy.write_text("[rule a]\nnetwork = nowhere\n")
    assert main(["config", "check", str(config)]) == 91
    assert f"error: {policy}:2: there is no network nowhere" in capsys.readouterr().err
    policy.unlink()
    assert main(["config", "check", str(config)]) == 66
