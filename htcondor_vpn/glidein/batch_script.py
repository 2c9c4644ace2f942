"""Scripts for batch systems: a folder of the job's own on the node with what it needs in it, and signals passed on.

The batch system warns the script alone, a while before the job's time is over; the script passes that on, waits for the
pilot's orderly end, and removes its folder. A job that is killed cannot do that; the next one of the same user does.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Batch(Enum):
    """A batch system."""

    SLURM = "slurm"
    PBS = "pbs"


@dataclass(frozen=True)
class BatchJob:
    """What a script is for.

    `argv` runs in the job's folder, `environment` is set for it. `secrets` are copied there, readable by their owner
    alone, and `files` as they are; a word of `argv` or a value of `environment` may be a name in that folder.
    `lead_seconds` before `time_seconds` are over it is told to end by SIGTERM. `directives` are more words for the
    batch system, such as a queue or an account.
    """

    name: str
    argv: Sequence[str]
    time_seconds: int
    lead_seconds: int
    cpus: int = 1
    secrets: Sequence[Path] = ()
    files: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    directives: Sequence[str] = ()


_SCRIPT = """\
#!/bin/bash
{directives}
# Made by `htcondor-vpn glidein`; submit it with `{submit}`.
set -u
umask 077
# Folders that nobody holds any more are those of jobs that were killed.
for lock in "${{TMPDIR:-/tmp}}/{name}"-*/.batch-lock; do
    [ ! -O "$lock" ] || flock -n "$lock" rm -rf "${{lock%/*}}"
done
folder=$(mktemp -d "${{TMPDIR:-/tmp}}/{name}-XXXXXX") || exit 74
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 74
exec 9>.lock && flock 9 && mv .lock .batch-lock || exit 74
{copies}{exports}
{argv} 9>&- &
pilot=$!
# The pilot ends in order when it is told to; its end is waited for.
trap 'kill -TERM "$pilot" 2>/dev/null' TERM INT USR1
while wait "$pilot"; code=$?; kill -0 "$pilot" 2>/dev/null; do :; done
exit "$code"
"""


def script(batch: Batch, job: BatchJob) -> str:
    """Writes the script."""
    copies = [f"install -m 600 {shlex.quote(str(path))} {shlex.quote(path.name)} || exit 79\n" for path in job.secrets]
    copies += [f"ln -s {shlex.quote(str(path))} {shlex.quote(path.name)} || exit 74\n" for path in job.files]
    exports = [f"export {name}={shlex.quote(value)}\n" for name, value in job.environment.items()]
    slurm = batch is Batch.SLURM
    argv = [*([] if slurm else _timer(job)), *job.argv]
    return _SCRIPT.format(
        directives="\n".join((_slurm if slurm else _pbs)(job)),
        submit="sbatch" if slurm else "qsub",
        name=job.name,
        copies="".join(copies),
        exports="".join(exports),
        argv=shlex.join(argv),
    )


def _slurm(job: BatchJob) -> list[str]:
    return [
        f"#SBATCH --job-name={job.name}",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        f"#SBATCH --cpus-per-task={job.cpus}",
        f"#SBATCH --time={_clock(job.time_seconds)}",
        f"#SBATCH --signal=B:TERM@{job.lead_seconds}",
        *(f"#SBATCH {directive}" for directive in job.directives),
    ]


def _timer(job: BatchJob) -> list[str]:
    """PBS gives no warning, so a timer does."""
    warn_after = max(1, job.time_seconds - job.lead_seconds)
    return ["timeout", "--foreground", "--preserve-status", "--signal=TERM", str(warn_after)]


def _pbs(job: BatchJob) -> list[str]:
    return [
        f"#PBS -N {job.name}",
        f"#PBS -l select=1:ncpus={job.cpus}",
        f"#PBS -l walltime={_clock(job.time_seconds)}",
        *(f"#PBS {directive}" for directive in job.directives),
    ]


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}"
