"""What a batch script asks for: its lines `#SBATCH …` or `#PBS …`, as far as the first command."""

from __future__ import annotations

import argparse
import re
import shlex
import signal
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Request:
    """`warning_signal` comes `warning_seconds` before the end, to the batch shell if `warns_shell`; 0: none."""

    name: str
    time_seconds: int
    output: str = ""
    warning_signal: int = 0
    warning_seconds: int = 0
    warns_shell: bool = False


class _Options(argparse.ArgumentParser):
    """Refuses what it does not know, as sbatch and qsub do."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def words(script: str, prefix: str) -> list[str]:
    """The words of all directives; raises ValueError for what is no script."""
    lines = script.splitlines()
    if not lines or not lines[0].startswith("#!"):
        raise ValueError("this does not look like a batch script: its first line names no interpreter")
    found = []
    for line in lines[1:]:
        if line.startswith(f"{prefix} "):
            found += shlex.split(line[len(prefix) :], comments=True)
        elif line.strip() and not line.startswith("#"):
            break
    return found


def slurm(script: str) -> Request:
    """Reads the options of sbatch(1) in a script; raises ValueError for one that we do not know."""
    options = _Options(prog="sbatch", add_help=False, allow_abbrev=False)
    for names in (
        ("-J", "--job-name"), ("-N", "--nodes"), ("-n", "--ntasks"), ("-c", "--cpus-per-task"), ("-t", "--time"),
        ("--signal",), ("-o", "--output"), ("-p", "--partition"), ("-A", "--account"), ("-q", "--qos"), ("--mem",),
    ):  # fmt: skip
        options.add_argument(*names, default="")
    told = options.parse_args(words(script, "#SBATCH"))
    warning = _warning(told.signal) if told.signal else {}
    return Request(told.job_name, _slurm_seconds(told.time), told.output, **warning)


def _warning(text: str) -> dict[str, int | bool]:
    match = re.fullmatch(r"(B:)?(?:SIG)?([A-Z]+\d?|\d+)(?:@(\d+))?", text)
    if match is None:
        raise ValueError(f"invalid --signal {text!r}")
    shell, name, seconds = match.groups()
    number = int(name) if name.isdecimal() else int(signal.Signals[f"SIG{name}"])
    return {"warning_signal": number, "warning_seconds": int(seconds or 60), "warns_shell": shell is not None}


def _slurm_seconds(text: str) -> int:
    """The formats of --time: minutes, minutes:seconds, hours:minutes:seconds, and behind `days-` hours first."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def pbs(script: str) -> Request:
    """Reads the options of qsub(1B) in a script; raises ValueError for one that we do not know."""
    options = _Options(prog="qsub", add_help=False, allow_abbrev=False)
    options.add_argument("-N", dest="name", default="")
    options.add_argument("-l", dest="resources", action="append", default=[])
    for name in ("-q", "-A"):
        options.add_argument(name)
    told = options.parse_args(words(script, "#PBS"))
    resources = dict(item.split("=", 1) for text in told.resources for item in text.split(","))
    seconds = 0
    for part in resources["walltime"].split(":"):
        seconds = seconds * 60 + int(part)
    return Request(told.name, seconds)
