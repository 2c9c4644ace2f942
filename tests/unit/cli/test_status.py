"""`htcondor-vpn status`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from htcondor_vpn.cli.main import main
from htcondor_vpn.publish.state import State


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HTCONDOR_VPN_RUN_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def pilot(place: Path, name: str, **values: object) -> Path:
    folder = place / f"htcondor-vpn-{name}"
    folder.mkdir(mode=0o700)
    State(**values).write(folder)  # type: ignore[arg-type]
    return folder


def test_no_pilot(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 4
    assert "no pilot" in capsys.readouterr().out


def test_one_that_is_up(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pilot(
        place, "1", state="up", since=time.time() - 100000, gateway="gw.example.org:8443", engine="stream", jobs=2,
        bytes_in=10, bytes_out=20, latency_ms=1.25, up_mbps=940.0, families=("ipv4", "ipv6"),
    )  # fmt: skip
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{folder}: up\n  gateway  gw.example.org:8443 by the stream engine, carries ipv4, ipv6\n")
    assert "(1 d 3:46:40)" in text
    assert "latency  1.25 ms" in text
    assert "940 Mbit/s up, not known down" in text
    assert "10 in, 20 out" in text
    assert "2 with a network" in text


def test_several_gateways_and_routes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateways = (
        {"name": "gw:1 at 192.0.2.1", "up": True, "load": 0.314, "draining": True, "reason": ""},
        {"name": "gw:1 at 192.0.2.2", "up": False, "load": 0.0, "draining": False, "reason": "it is silent"},
    )
    route = {"to": "10.8.0.0/16", "by": "direct", "up": True, "flows": 3, "reason": ""}
    pilot(place, "1", state="up", gateways=gateways, routes=(route, {**route, "up": False, "reason": "gone"}))
    assert main(["status"]) == 0
    text = capsys.readouterr().out
    assert "  by       gw:1 at 192.0.2.1, load 0.31, draining\n" in text
    assert "  by       gw:1 at 192.0.2.2, down: it is silent\n" in text
    assert "  route    10.8.0.0/16 direct, 3 flows\n" in text
    assert "  route    10.8.0.0/16 direct, 3 flows, down: gone\n" in text
    pilot(place, "2", state="up", gateways=gateways[:1])
    main(["status", "--run-dir", str(place / "htcondor-vpn-2")])
    assert " by  " not in capsys.readouterr().out  # it says no more than the line above


def test_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pilot(place, "1", state="down", reason="no answer")
    assert main(["status", "--json"]) == 3
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["run_dir"], report["state"], report["reason"]) == (str(folder), "down", "no answer")


def test_several(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pilot(place, "1", state="up")
    pilot(place, "2", state="connecting")
    assert main(["status"]) == 3
    assert capsys.readouterr().out.count("gateway") == 2
    assert main(["status", "--run-dir", str(place / "htcondor-vpn-1")]) == 0


def test_nobody_behind_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    pilot(place, "1", state="up", pid=child)
    assert main(["status"]) == 3
    assert ": stopped (its supervisor is gone)" in capsys.readouterr().out


def test_a_silent_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pilot(place, "1", state="up", updated=time.time() - 60)
    assert main(["status"]) == 4
    assert ": unknown (its supervisor has fallen silent)" in capsys.readouterr().out


def test_a_damaged_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pilot(place, "1") / "state.json").write_text("{")
    assert main(["status"]) == 4
    assert "state.json is damaged" in capsys.readouterr().out
    assert main(["status", "--run-dir", str(place / "missing")]) == 4
    assert "No such file" in capsys.readouterr().out


def test_others_folders_are_not_believed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pilot(place, "1", state="up").chmod(0o777)
    (place / "htcondor-vpn-2").symlink_to(place / "htcondor-vpn-1")
    assert main(["status"]) == 4
    assert "no pilot" in capsys.readouterr().out


def test_inside_a_pilot_its_own_is_meant(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pilot(place, "1", state="down")
    monkeypatch.setenv("HTCONDOR_VPN_RUN_DIR", str(pilot(place, "2", state="up")))
    assert main(["status"]) == 0
