import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from htcondor_vpn.errors import RunFolderError
from htcondor_vpn.pilot.run_folder import RunFolder


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
    folder.release()
    assert sorted(os.listdir(folder.path)) == ["run.log", "state.json"]


def test_two_pilots_cannot_share_one(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match="another"):
        RunFolder(tmp_path / "run")
    folder.release()


def test_nobody_else_has_one_until_the_last_process_has_left_it(tmp_path):
    """Of a pilot that was killed, broker and engine do; who is done first must not let the next one in."""
    folder = RunFolder(tmp_path / "run")
    for _ in range(2):
        assert os.listdir(folder.path) == ["run.lock"]
        with pytest.raises(RunFolderError, match="another"):
            RunFolder(tmp_path / "run")
        if (child := os.fork()) == 0:
            try:
                folder.leave()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    folder.leave()
    assert os.listdir(folder.path) == []
    RunFolder(tmp_path / "run").release()


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
