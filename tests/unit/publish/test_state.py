"""state.json, written and read."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from htcondor_vpn.errors import RunFolderError
from htcondor_vpn.publish.state import State

STATE = State(
    state="up", since=1.5, engine="stream", gateway="[2001:db8::1]:443", latency_ms=0.5, up_mbps=None, down_mbps=3.0,
    bytes_in=2**40, bytes_out=0, flows=1, jobs=2, families=("ipv4",), reason="", pid=42, updated=1000.0,
    gateways=({"name": "gw:1 at 192.0.2.1", "up": False, "load": 0.5, "draining": True, "reason": "gone"},),
    routes=({"to": "10.8.0.0/16", "by": "direct", "up": True, "flows": 3, "reason": ""},),
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    STATE.write(tmp_path)
    assert State.read(tmp_path) == STATE
    replaced = replace(STATE, state="down", reason='a "reason"\nin ünïcode')
    replaced.write(tmp_path)
    assert State.read(tmp_path) == replaced
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600
    assert json.loads((tmp_path / "state.json").read_text())["version"] == 1


def test_a_gateway_on_the_same_link(tmp_path: Path) -> None:
    scoped = replace(STATE, gateway="[fe80::1%eth0.7]:443")
    scoped.write(tmp_path)
    assert State.read(tmp_path) == scoped


@pytest.mark.parametrize(
    "wrong",
    [{"state": "fine"}, {"latency_ms": float("nan")}, {"bytes_in": -1}, {"gateway": 'x"y:1'}, {"families": ("ipx",)}],
)
def test_nothing_is_written_that_nobody_would_read(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="."):
        replace(STATE, **wrong).write(tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be written"):
        STATE.write(tmp_path / "missing")


def test_the_state_in_force(tmp_path: Path) -> None:
    alive = State(state="up")
    assert alive.word() == "up"
    assert alive.word(alive.updated + 31) == "unknown"
    assert alive.word(alive.updated - 31) == "unknown"
    assert replace(alive, pid=2**22 + 1).word() == "stopped"
    assert replace(alive, state="failed", pid=2**22 + 1).word() == "failed"
