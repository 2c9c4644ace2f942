"""Where programs are looked for, and what is said of those that fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program


@pytest.fixture
def some_program(tmp_path: Path) -> Path:
    path = tmp_path / "some-program"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_program_on_path(some_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/nowhere:{some_program.parent}")
    assert find_program("some-program") == str(some_program)


@pytest.mark.parametrize("path", [None, "", ":/nowhere", "/nowhere::/else"])
def test_the_current_folder_is_never_meant(
    some_program: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.chdir(some_program.parent)
    if path is None:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", path)
    with pytest.raises(ProgramMissing, match=r"`some-program`.*Debian: its-package"):
        find_program("some-program", "its-package")


def test_administrators_programs_are_found_with_a_users_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "some-daemon").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("htcondor_vpn.linux.programs.SBIN", (str(tmp_path),))
    assert find_program("some-daemon") == f"{tmp_path}/some-daemon"


def test_a_failure_says_which_program_and_what_it_said() -> None:
    with pytest.raises(ProgramFailed, match="code 3: so it is") as caught:
        run_program(["sh", "-c", "echo so it is >&2; exit 3"])
    assert (caught.value.code, caught.value.stderr) == (3, "so it is\n")
    assert run_program(["cat"], stdin="text") == "text"
