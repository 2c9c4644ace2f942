import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from htcondor_vpn.glidein.batch_script import Batch, BatchJob, script

#: Says what it finds, waits for SIGTERM, and ends with a code of its own.
PILOT = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(23))
print(os.getcwd(), oct(os.stat("a secret.token").st_mode & 0o777), os.readlink("tool"), os.environ["WORD"], flush=True)
signal.pause()
"""


@pytest.fixture
def job(tmp_path):
    secret, tool = tmp_path / "a secret.token", tmp_path / "tool"
    secret.write_text("s3cret")
    tool.touch()
    argv = [sys.executable, "-c", PILOT]
    return BatchJob("pilot", argv, 7300, 300, 4, [secret], [tool], {"WORD": "it's $HOME"}, ["-q long"])


@pytest.mark.parametrize("batch", Batch)
def test_a_warning_ends_the_pilot_and_its_folder_goes(batch, job, tmp_path):
    (tmp_path / "node").mkdir()
    path = tmp_path / "job.sh"
    path.write_text(script(batch, job))
    environment = {**os.environ, "TMPDIR": str(tmp_path / "node")}
    with subprocess.Popen(["bash", str(path)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, mode, link, word = process.stdout.readline().split(" ", 3)
        assert Path(folder).parent == tmp_path / "node"
        assert (mode, link, word) == ("0o600", str(tmp_path / "tool"), "it's $HOME\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 23
    assert list((tmp_path / "node").iterdir()) == []


def test_what_a_killed_job_left_goes_with_the_next_but_not_what_is_of_use(job, tmp_path):
    (tmp_path / "node").mkdir()
    path = tmp_path / "job.sh"
    path.write_text(script(Batch.SLURM, job))
    environment = {**os.environ, "TMPDIR": str(tmp_path / "node")}

    def start():
        return subprocess.Popen(
            ["bash", str(path)], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    with start() as killed, start() as living:
        folders = [Path(process.stdout.readline().split()[0]) for process in (killed, living)]
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert all((folder / "a secret.token").exists() for folder in folders)
        with start() as following:
            following.stdout.readline()
            assert [folder.exists() for folder in folders] == [False, True]
            for process in (following, living):
                process.terminate()
    assert list((tmp_path / "node").iterdir()) == []


def test_a_secret_that_is_missing_is_an_end(job, tmp_path):
    (tmp_path / "a secret.token").unlink()
    path = tmp_path / "job.sh"
    path.write_text(script(Batch.SLURM, job))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", str(path)], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 79


def test_pbs_gets_a_timer(job, tmp_path):
    text = script(Batch.PBS, job)
    assert "#PBS -l walltime=02:01:40\n#PBS -q long\n" in text
    assert "--signal=TERM 7000 " in text


def test_slurm_warns_by_itself(job):
    text = script(Batch.SLURM, job)
    assert "#SBATCH --time=02:01:40\n#SBATCH --signal=B:TERM@300\n#SBATCH -q long\n" in text
    assert "timeout" not in text
