"""The stand-ins for batch systems do to a job's processes what those do. They run on this machine here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from batch_side import Pbs, Slurm

from htcondor_vpn.testbed.condor_folder import wait_until


class ThisHost:
    name = "here"

    def start(self, argv, *, stdin, log):
        with log.open("ab") as file:
            return subprocess.Popen(argv, stdin=stdin, stdout=file, stderr=file)


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "OF_SUBMITTER": "yes"}


@pytest.fixture
def submit(tmp_path, environment):
    """Submits a script, with a time limit of a minute and the kill five seconds after TERM."""
    systems = []

    def submit(system, lines, options=""):
        script = tmp_path / "job.sh"
        directive = f"#SBATCH -t 1 {options}" if system is Slurm else "#PBS -l walltime=00:01:00"
        script.write_text(f"#!/bin/bash\n{directive}\n{lines}\n")
        systems.append(system(ThisHost(), tmp_path / system.kind, kill_wait_seconds=5))
        return (systems[-1].sbatch if system is Slurm else systems[-1].qsub)(script, environment)

    yield submit
    for system in systems:
        with system:
            pass


def wait_for(job, text):
    wait_until(text, 60, lambda: (job.output.exists() and text in job.output.read_text()) or None, 0.01)


def is_gone(pid):
    return not Path(f"/proc/{pid}").exists()


def test_where_a_script_runs_and_what_it_finds(submit, tmp_path, environment):
    says = 'echo "$PWD ${OF_SUBMITTER-} ${SLURM_JOB_ID-$PBS_JOBID} $TMPDIR"; exit 3'
    job = submit(Slurm, says)
    assert job.wait(60) == 3
    assert job.output.read_text() == f"{tmp_path} yes 17 {job.tmp}\n"
    job = submit(Pbs, says)
    assert job.wait(60) == 3
    assert job.output.read_text() == f"{environment['HOME']}  17.pbs {job.tmp}\n"
    assert not job.tmp.exists()


#: Says that it gets TERM, and goes on.
TELLER = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: print(sys.argv[1], "got TERM", flush=True))
print(sys.argv[1], os.getpid(), flush=True)
while True:
    signal.pause()
"""

#: A shell with a child in its session, and one in a session of its own.
FAMILY = f"""
{sys.executable} -IS -c '{TELLER}' child &
setsid {sys.executable} -IS -c '{TELLER}' stranger &
trap 'echo shell got TERM; [ -z "${{ENDS-}}" ] || exit 5' TERM
echo "shell $$"
while true; do wait; done
"""


def family(submit, system, before="", options=""):
    """Submits that, and returns the job and the three numbers, when all can be told."""
    job = submit(system, f"{before}\n{FAMILY}", options)
    for name in ("child", "stranger", "shell"):
        wait_for(job, f"{name} ")
    lines = [line.split() for line in job.output.read_text().splitlines()]
    return job, {words[0]: int(words[1]) for words in lines}


def test_slurm_tells_the_shell_and_kills_all(submit):
    job, pids = family(submit, Slurm)
    job.cancel()
    assert job.wait(60) == -9
    assert job.output.read_text().count("got TERM") == 1
    wait_until("all have gone", 60, lambda: all(map(is_gone, pids.values())) or None)


def test_slurm_kills_what_a_script_leaves(submit):
    job, pids = family(submit, Slurm, "ENDS=1")
    job.cancel()
    assert job.wait(60) == 5
    wait_until("all have gone", 60, lambda: all(map(is_gone, pids.values())) or None)


def test_slurm_warns_the_shell_before_the_time_is_over(submit):
    job, _ = family(submit, Slurm, options="--signal=B:TERM@30")
    job.leave(30)
    wait_for(job, "shell got TERM")
    job.leave(0)
    assert job.wait(60) == -9
    assert "child got" not in job.output.read_text()


def test_pbs_tells_the_session_and_kills_it_with_its_first_shell(submit):
    job, pids = family(submit, Pbs)
    job.cancel()
    assert job.wait(60) == -15, "the shell that PBS has started"
    assert "stranger got" not in job.output.read_text()
    wait_until("its own have gone", 60, lambda: all(is_gone(pids[name]) for name in ("child", "shell")) or None)
    assert not is_gone(pids["stranger"])
    os.kill(pids["stranger"], 9)
