"""A file that is renewed while it is in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from htcondor_vpn.errors import ConfigUnreadable
from htcondor_vpn.wire.renewed import Renewed


def read(path: Path) -> str:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigUnreadable(f"{path} cannot be read", "mend it") from error
    if not text:
        raise ConfigUnreadable(f"{path} is empty", "mend it")
    return text


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.mark.parametrize(("may_go", "complaints"), [(True, 0), (False, 1)])
def test_one_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture, may_go: bool, complaints: int) -> None:
    path = tmp_path / "file"
    path.write_text("first")
    renewed = Renewed(path, read, "the last one", may_go=may_go)
    path.unlink()
    assert [renewed(), renewed()] == ["first"] * 2
    assert len(caplog.records) == complaints
    path.write_text("second")
    assert renewed() == "second"


def test_every_change_is_seen_and_each_trouble_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_text("first")
    renewed = Renewed(path, read, "the last one")
    for _ in range(2):
        replace(path, "")
        assert [renewed(), renewed()] == ["first"] * 2
    assert [record.getMessage() for record in caplog.records] == [f"{path} is empty: mend it; the last one counts"]
    for text in ("second", "third"):
        replace(path, text)
        assert renewed() == text
    replace(path, "")
    assert renewed() == "third"
    assert len(caplog.records) == 2


def test_a_bad_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable):
        Renewed(tmp_path / "none", read, "it")
