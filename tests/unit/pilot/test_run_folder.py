import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from htcondor_vpn.errors import RunFolderError
from htcondor_vpn.pilot.run_folder import RunFolder
from htcondor_vpn.publish.state import State


def fork(body):
    """Starts a process that does this, and exits with 0 if that went well; returns its pid."""
    if (pid := os.fork()) == 0:
        try:
            body()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def test_a_folder_of_our_own_is_private_and_goes(monkeypatch):
    with tempfile.TemporaryDirectory() as short:  # pytest's own may be too long for a socket
        monkeypatch.setattr("tempfile.tempdir", short)
        folder = RunFolder(None)
        assert folder.path.parent == Path(short)
        assert folder.path.stat().st_mode & 0o777 == 0o700
        folder.state.write_text("{}")
        folder.release()
        folder.release()
        assert os.listdir(short) == []


def test_a_given_folder_keeps_state_and_log(tmp_path):
    folder = RunFolder(tmp_path / "run")
    module = tmp_path / "module.py"
    module.write_text("print('hello')\n")
    folder.fill({"say-hello": module})
    assert os.access(folder.path / "libexec" / "say-hello", os.X_OK)
    folder.state.write_text("{}")
    folder.log.write_text("")
    for unfinished in (".state.json.17", ".jobs.json.18"):  # of a process that was killed
        (folder.path / unfinished).write_text("{")
    folder.release()
    assert sorted(os.listdir(folder.path)) == ["run.log", "state.json"]


def test_two_pilots_cannot_share_one(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match="another"):
        RunFolder(tmp_path / "run")
    folder.release()


@pytest.fixture
def leave(monkeypatch):
    """Has another process leave a folder, which has found it in use, or has ended, on return; returns its pid."""
    sleep, pipes = time.sleep, []

    def leave(folder):
        waiting, tell = os.pipe()
        pipes.append(waiting)
        with monkeypatch.context() as patched:
            patched.setattr(time, "sleep", lambda seconds: (os.write(tell, b"x"), sleep(seconds)))
            pid = fork(folder.leave)
        os.close(tell)
        os.read(waiting, 1)
        return pid

    yield leave
    for descriptor in pipes:
        os.close(descriptor)


def test_nobody_else_has_one_until_the_last_process_has_left_it(tmp_path, leave):
    """Of a pilot that was killed, broker and engine do; who is done first must not let the next one in."""
    folder = RunFolder(tmp_path / "run")
    leaving = []
    for _ in range(2):
        assert os.listdir(folder.path) == ["run.lock"]
        with pytest.raises(RunFolderError, match="another"):
            RunFolder(tmp_path / "run")
        leaving.append(leave(folder))
    folder.leave()
    assert [os.waitpid(pid, 0)[1] for pid in leaving] == [0, 0]
    assert os.listdir(folder.path) == []
    RunFolder(tmp_path / "run").release()


def test_who_was_killed_has_one_for_a_while_after_the_last_process_has_left_it(tmp_path, leave):
    """The engine, together with the supervisor: the lock is its own until the kernel is done with it."""
    folder = RunFolder(tmp_path / "run")
    engine = fork(signal.pause)
    broker = leave(folder)
    os.close(folder.locks[0])
    os.kill(engine, signal.SIGKILL)
    assert [os.waitpid(pid, 0)[1] for pid in (engine, broker)] == [signal.SIGKILL, 0]
    assert os.listdir(folder.path) == []


def test_the_next_pilot_is_not_waited_for(tmp_path):
    folder = RunFolder(tmp_path / "run")
    State(pid=os.getpid()).write(folder.path)
    begin = time.monotonic()
    assert os.waitpid(fork(folder.leave), 0)[1] == 0
    assert time.monotonic() - begin < 15  # for who has ended it would be 20
    folder.release()
    assert os.listdir(folder.path) == ["state.json"]


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_folder_that_others_may_write(tmp_path, mode):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(RunFolderError, match="chmod 700"):
        RunFolder(tmp_path / "run")


def test_a_path_with_a_blank(tmp_path):
    with pytest.raises(RunFolderError, match="blank"):
        RunFolder(tmp_path / "my run")


def test_a_path_that_is_no_text(tmp_path):
    with pytest.raises(RunFolderError, match="no text"):
        RunFolder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")))


def test_an_interpreter_at_a_long_path_with_blanks(monkeypatch, tmp_path):
    long = tmp_path / ("folder with blanks " * 8)
    long.mkdir()
    (long / "python3").symlink_to(sys.executable)
    monkeypatch.setattr("sys.executable", str(long / "python3"))
    module = tmp_path / "module.py"
    module.write_text("print('hello')\n")
    folder = RunFolder(tmp_path / "run")
    folder.fill({"say-hello": module})
    said = subprocess.run([folder.path / "libexec" / "say-hello"], capture_output=True, text=True, check=True)
    assert said.stdout == "hello\n"
    folder.release()


def test_a_program_keeps_its_name_and_its_arguments(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("import sys\nprint(__name__, sys.argv[0].rpartition('/')[2], *sys.argv[1:])\n")
    folder = RunFolder(tmp_path / "it's a \"run\"".replace(" ", "-"))
    folder.fill({"one": module, "other": module})
    for name in ("one", "other"):
        said = subprocess.run([folder.path / "libexec" / name, "a b"], capture_output=True, text=True, check=True)
        assert said.stdout == f"__main__ {name} a b\n"
    folder.release()


def test_a_path_that_is_too_long_for_a_socket(tmp_path):
    with pytest.raises(RunFolderError, match="too long"):
        RunFolder(tmp_path / ("x" * 100))


def test_a_place_that_does_not_exist(tmp_path):
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder(tmp_path / "none" / "run")
