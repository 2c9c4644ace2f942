"""Temporary folders: those of killed owners are removed by others, and no others."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest

from htcondor_vpn.linux import temporary_folders
from htcondor_vpn.linux.temporary_folders import TemporaryFolder, remove_abandoned

PREFIX = "ours-"

#: Makes a folder with something in it, has a child keep it if asked to, says so, and waits to be killed.
OWNER = """
import os, sys
from pathlib import Path
from htcondor_vpn.linux.temporary_folders import TemporaryFolder
folder = TemporaryFolder("ours-", Path(sys.argv[1]))
(folder.path / "file").write_text("something")
child = os.fork() if sys.argv[2:] else 0
if sys.argv[2:] and not child:
    os.setsid()
else:
    print(folder.path, child, flush=True)
sys.stdin.read()
"""

#: Makes folders one after the other, and each time sees that it is still there, and its own, at the end.
MAKER = """
import sys
from pathlib import Path
from htcondor_vpn.linux.temporary_folders import TemporaryFolder
for number in range(int(sys.argv[2])):
    folder = TemporaryFolder("ours-", Path(sys.argv[1]))
    (folder.path / "file").write_text(str(number))
    assert (folder.path / "file").read_text() == str(number)
    if number % 2:
        folder.remove()
    folder.close()
"""


@contextmanager
def owner(above, *more):
    argv = [sys.executable, "-c", OWNER, str(above), *more]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        path, child = process.stdout.readline().split()
        yield process, above / path, int(child)
    finally:
        process.kill()
        process.stdin.close()  # a child that is left ends by that
        process.wait()
        process.stdout.close()


def test_what_a_killed_owner_leaves_is_removed_and_not_before(tmp_path):
    with owner(tmp_path) as (process, path, _):
        assert path.stat().st_mode & 0o777 == 0o700
        assert remove_abandoned(PREFIX, tmp_path) == []
        assert (path / "file").exists()
        process.kill()
        process.wait()
        assert remove_abandoned(PREFIX, tmp_path) == [path]
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_keeps_the_lock_keeps_the_folder(tmp_path):
    with owner(tmp_path, "child") as (process, path, child):
        process.kill()
        process.wait()
        assert remove_abandoned(PREFIX, tmp_path) == []
        pidfd = os.pidfd_open(child)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)
        assert remove_abandoned(PREFIX, tmp_path) == [path]


def test_an_owner_removes_all_of_it_and_again_does_no_harm(tmp_path):
    folder = TemporaryFolder(PREFIX, tmp_path)
    (folder.path / "below").mkdir()
    folder.remove()
    assert list(tmp_path.iterdir()) == []
    folder.remove()
    folder.close()


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_folders_that_a_job_has_made_unwritable_are_removed(tmp_path, mode):
    folder = TemporaryFolder(PREFIX, tmp_path)
    below = folder.path / "a/b"
    below.mkdir(parents=True)
    (below / "file").touch()
    below.chmod(mode)
    below.parent.chmod(mode)
    folder.close()
    assert remove_abandoned(PREFIX, tmp_path) == [folder.path]


def test_what_is_not_ours_stays(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / temporary_folders._lock_name()).touch()
    (tmp_path / f"{PREFIX}a__link_").symlink_to(target)
    (tmp_path / f"{PREFIX}a__file_").touch()
    (tmp_path / f"{PREFIX}longer_than_ours").mkdir()
    inside = TemporaryFolder(PREFIX, tmp_path)
    (inside.path / "link").symlink_to(target)
    others = TemporaryFolder(PREFIX, tmp_path)
    others.close()
    inside.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert remove_abandoned(PREFIX, tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr(temporary_folders, "_lock_name", lambda: ".another-node.lock")
        assert remove_abandoned(PREFIX, tmp_path) == []
    assert set(remove_abandoned(PREFIX, tmp_path)) == {inside.path, others.path}
    assert (target / temporary_folders._lock_name()).exists()
    assert len(list(tmp_path.iterdir())) == 4
    assert remove_abandoned(PREFIX, tmp_path / "missing") == []


@pytest.mark.parametrize("moment", ["made", "opened", "being removed"])
def test_whoever_is_taken_for_a_killed_one_while_he_begins_gets_another(tmp_path, monkeypatch, moment):
    """At each point at which a new folder is not locked yet."""
    made, flock, held = tempfile.mkdtemp, fcntl.flock, []

    def make(**words):
        monkeypatch.setattr(tempfile, "mkdtemp", made)
        path = made(**words)
        if moment == "made":
            remove_abandoned(PREFIX, tmp_path)
        return path

    def lock(descriptor, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        if moment == "opened":
            assert len(remove_abandoned(PREFIX, tmp_path)) == 1
        else:
            held.append(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
            flock(held[0], how)
        flock(descriptor, how)

    monkeypatch.setattr(tempfile, "mkdtemp", make)
    if moment != "made":
        monkeypatch.setattr(fcntl, "flock", lock)
    folder = TemporaryFolder(PREFIX, tmp_path)
    assert folder.path.is_dir()
    assert remove_abandoned(PREFIX, tmp_path) == []
    folder.remove()
    folder.close()
    for descriptor in held:
        os.close(descriptor)
    assert len(remove_abandoned(PREFIX, tmp_path)) == (1 if moment == "being removed" else 0)
    assert list(tmp_path.iterdir()) == []


def test_many_that_make_and_remove_at_once(tmp_path):
    argv = [sys.executable, "-c", MAKER, str(tmp_path), "150"]
    makers = [subprocess.Popen(argv) for _ in range(3)]
    while any(maker.poll() is None for maker in makers):
        remove_abandoned(PREFIX, tmp_path)
    assert [maker.wait() for maker in makers] == [0] * 3
    remove_abandoned(PREFIX, tmp_path)
    assert list(tmp_path.iterdir()) == []

