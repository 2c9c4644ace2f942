"""Stands in for Slurm and PBS on the simulated site: sbatch, scancel, qsub and qdel, and what these do on a node.

What a job meets there differs, as the manuals (sbatch(1), scancel(1), slurm.conf(5); qsub(1B), qdel(1B)) or the sources
have it:

- Slurm runs a copy of the script in the folder of submission, with the submitter's environment. A warning
  (`--signal=B:`) goes to the batch shell alone; without `B:` to steps that the script has started by srun, of which
  there are none here. scancel and the time limit send CONT and TERM to the batch shell, and KILL to all processes of
  the job KillWait later, or as soon as the script has ended (proctrack/cgroup).
- PBS starts a shell in the home folder, in a session of its own, which reads the script's name from its standard input.
  Of the submitter's environment there is nothing but PBS_O_…; TMPDIR is the job's own and goes with it. qdel and the
  time limit send TERM to all processes of that session, and KILL later, or as soon as that shell has ended, which TERM
  does. What has left the session is never told.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path

from batch_side import directives
from batch_side.directives import Request
from htcondor_vpn.testbed.host import Host

EXECUTION = Path(__file__).parent / "execution.py"


class Job:
    """A job that runs. `output` is the file that its script writes to, `tmp` what TMPDIR names."""

    def __init__(self, number: int, output: Path, tmp: Path, process: subprocess.Popen[bytes]) -> None:
        self.number, self.output, self.tmp, self._process = number, output, tmp, process

    def _order(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """`scancel --batch --signal`: to the batch shell alone."""
        self._order("signal", int(number))

    def cancel(self) -> None:
        """scancel, qdel."""
        self._order("cancel")

    def leave(self, seconds: float) -> None:
        """`scontrol update TimeLimit`, `qalter -l walltime`: another time limit, so that it has so long from now on."""
        self._order("leave", seconds)

    def wait(self, deadline_seconds: float) -> int:
        """The exit code of its script (negative: the signal that ended it), when nothing of the job is left.

        Raises subprocess.TimeoutExpired.
        """
        self._process.wait(deadline_seconds)
        return int(Path(f"{self.output}.ended").read_text())

    def abandon(self) -> None:
        """Kills what supervises it, and all processes that it knows to be the job's. May be repeated."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has just ended
            if self._process.poll() is None:
                self._order("kill")
            self._process.stdin.close()
        self._process.wait(60)


class BatchSystem:
    """One on `host`, with its files in `folder`, which has the node's `tmp` in it."""

    kind: str

    def __init__(self, host: Host, folder: Path, kill_wait_seconds: float = 30) -> None:
        self._host, self.folder, self._kill_wait_seconds = host, folder, kill_wait_seconds
        self.tmp = folder / "tmp"
        self._spool = folder / "spool"
        for made in (self.tmp, self._spool):
            made.mkdir(parents=True)
        self._numbers = count(17)
        self.jobs: list[Job] = []

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self is newer than our Python
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs:
            job.abandon()

    def _spooled(self, script: Path, number: int) -> str:
        """The path of the copy that is run."""
        copy = self._spool / f"{number}.sh"
        copy.write_bytes(script.read_bytes())
        copy.chmod(0o700)
        return str(copy)

    def _start(self, number: int, request: Request, tmp: Path, **shell: object) -> Job:
        spec = self._spool / f"{number}.json"
        more = {"kind": self.kind, "kill_wait_seconds": self._kill_wait_seconds}
        spec.write_text(json.dumps({**asdict(request), **more, **shell}))
        argv = [sys.executable, "-IS", str(EXECUTION), str(spec)]
        process = self._host.start(argv, stdin=subprocess.PIPE, log=self._spool / f"{number}.log")
        self.jobs.append(Job(number, Path(str(shell["output"])), tmp, process))
        return self.jobs[-1]


class Slurm(BatchSystem):
    """Slurm, with a `tmp` that all jobs share, and that nobody empties."""

    kind = "slurm"

    def sbatch(self, script: Path, environment: Mapping[str, str]) -> Job:
        """`sbatch SCRIPT` in the script's folder, with this environment; raises ValueError for what sbatch refuses."""
        request = directives.slurm(script.read_text())
        number = next(self._numbers)
        output = script.parent / (request.output or "slurm-%j.out").replace("%j", str(number))
        job = {
            "SLURM_JOB_ID": str(number), "SLURM_JOB_NAME": request.name or script.name, "SLURM_JOB_NUM_NODES": "1",
            "SLURM_SUBMIT_DIR": str(script.parent), "SLURMD_NODENAME": self._host.name, "TMPDIR": str(self.tmp),
        }  # fmt: skip
        return self._start(
            number, request, self.tmp, argv=[self._spooled(script, number)], stdin="", folder=str(script.parent),
            output=str(output), environment={**environment, **job},
        )  # fmt: skip


class Pbs(BatchSystem):
    """PBS, whose server calls each job NUMBER.pbs."""

    kind = "pbs"

    def qsub(self, script: Path, environment: Mapping[str, str], variables: Mapping[str, str] | None = None) -> Job:
        """`qsub -v VARIABLES SCRIPT`, likewise."""
        request = directives.pbs(script.read_text())
        number = next(self._numbers)
        tmp = self.tmp / f"pbs.{number}.pbs"
        tmp.mkdir(mode=0o700)
        job = {
            "HOME": environment["HOME"], "LOGNAME": environment.get("LOGNAME", "user"), "PATH": os.defpath,
            "PBS_JOBID": f"{number}.pbs", "PBS_JOBNAME": request.name or script.name, "PBS_ENVIRONMENT": "PBS_BATCH",
            "PBS_O_WORKDIR": str(script.parent), "PBS_O_PATH": environment.get("PATH", ""), "TMPDIR": str(tmp),
        }  # fmt: skip
        return self._start(
            number, request, tmp, argv=["/bin/bash"], stdin=f"{shlex.quote(self._spooled(script, number))}\n",
            folder=environment["HOME"], output=f"{script.parent / job['PBS_JOBNAME']}.o{number}",
            environment={**job, **(variables or {})},
        )  # fmt: skip
