"""Which configuration files count."""

from __future__ import annotations

from pathlib import Path

import pytest

from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import ConfigUnreadable


@pytest.fixture
def condor(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "condor_config").write_text(
        f"LOCAL_DIR = {tmp_path}\nLOCAL_CONFIG_DIR = $(LOCAL_DIR)/config.d\nLOCAL_CONFIG_FILE = $(LOCAL_DIR)/last\n"
    )
    (tmp_path / "last").write_text("A = 1\n")
    for name in ("50-b", "10-a", ".hidden", "50-b~", "60-c.rpmnew"):
        (tmp_path / "config.d" / name).write_text("A = 1\n")
    (tmp_path / ".condor").mkdir()
    (tmp_path / ".condor" / "user_config").write_text("A = 1\n")
    return {"CONDOR_CONFIG": str(tmp_path / "condor_config"), "HOME": str(tmp_path)}


def test_htcondors_chain_in_its_order(tmp_path: Path, condor: dict[str, str]) -> None:
    sources = config_files([], condor)
    names = [str(path.relative_to(tmp_path)) for path in sources.files]
    assert names == ["condor_config", "config.d/10-a", "config.d/50-b", "last", ".condor/user_config"]
    assert sources.warnings == []


def test_a_local_file_may_name_the_last_files(tmp_path: Path, condor: dict[str, str]) -> None:
    (tmp_path / "config.d" / "10-a").write_text(f"LOCAL_CONFIG_FILE = {tmp_path}/other\n")
    (tmp_path / "other").write_text("")
    assert tmp_path / "other" in config_files([], condor).files


def test_given_files_and_our_variable_come_first(condor: dict[str, str]) -> None:
    environ = {**condor, "HTCONDOR_VPN_CONFIG": "/x/a:/x/b"}
    assert config_files([Path("/y")], environ).files == [Path("/y")]
    assert config_files([], environ).files == [Path("/x/a"), Path("/x/b")]


def test_what_is_missing_is_said(tmp_path: Path, condor: dict[str, str]) -> None:
    (tmp_path / "condor_config").write_text(
        f"LOCAL_CONFIG_DIR = {tmp_path}/no-such-folder, $(NOWHERE)\nLOCAL_CONFIG_FILE = {tmp_path}/no-such-file\n"
    )
    sources = config_files([], condor)
    assert [path.name for path in sources.files] == ["condor_config", "user_config"]
    assert len(sources.warnings) == 2
    assert "NOWHERE" in sources.warnings[0]
    assert "no-such-file" in sources.warnings[1]


@pytest.mark.parametrize("value", ["ONLY_ENV", "/bin/make-config |"])
def test_no_file_at_all(value: str) -> None:
    assert config_files([], {"CONDOR_CONFIG": value}).files == []


def test_a_missing_condor_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable):
        config_files([], {"CONDOR_CONFIG": str(tmp_path / "missing")})


def test_commands_are_not_run(tmp_path: Path, condor: dict[str, str]) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "condor_config").write_text(f"LOCAL_CONFIG_FILE = touch {marker} |\ninclude command : touch {marker}\n")
    sources = config_files([], condor)
    assert not marker.exists()
    assert "only HTCondor runs it" in sources.warnings[0]


def test_an_account_without_a_home_folder(condor: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    del condor["HOME"]
    assert [path.name for path in config_files([], condor).files] == ["condor_config", "10-a", "50-b", "last"]
