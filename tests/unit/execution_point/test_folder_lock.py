"""The folder of an execution point, where one broker ends while the next one begins."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from htcondor_vpn.execution_point.daemon import leave, locked

LOCK = "run.lock"


def test_one_has_it_alone_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "point"
    lock = locked(folder)
    with pytest.raises(BlockingIOError):
        locked(folder)
    leave(folder, lock)
    assert not folder.exists()
    leave(folder, locked(folder))


def test_it_is_not_left_before_all_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one's programs have the names of those that are being removed."""
    folder, rmtree = tmp_path / "point", shutil.rmtree
    lock = locked(folder)
    (folder / "libexec").mkdir()
    (folder / "libexec/job-wrapper").touch()
    (folder / "decisions").touch()
    tried = []

    def remove(path: Path, **options: Any) -> None:
        tried.append(path.name)
        with pytest.raises(BlockingIOError):
            locked(folder)
        rmtree(path, **options)
        with pytest.raises(BlockingIOError):
            locked(folder)

    monkeypatch.setattr("htcondor_vpn.execution_point.daemon.shutil.rmtree", remove)
    leave(folder, lock)
    assert tried == ["libexec"]
    assert not folder.exists()


@pytest.mark.parametrize("whole", [False, True])
def test_a_lock_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Who had it was done between the opening of its file and the locking."""
    folder, flock = tmp_path / "point", fcntl.flock
    removed = []

    def lock_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            (folder / LOCK).unlink()
            if whole:
                folder.rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr("htcondor_vpn.execution_point.daemon.fcntl.flock", lock_late)
    lock = locked(folder)
    assert os.path.samestat(os.fstat(lock), os.stat(folder / LOCK))
    leave(folder, lock)
