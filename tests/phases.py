"""Runs the tests in three phases, with pytest's arguments: beside each other; alone, those that measure; and, as the
account that started them, those for the machine's root.

A test that hangs ends by its own time limit. What hangs outside of any test ends its phase after 40 minutes.

A test mostly waits, so that there are more workers than processors: $HTCONDOR_VPN_TEST_WORKERS, or 4. The last lines
are, of each phase, what failed, why tests for root were skipped, and pytest's closing line. The exit code is pytest's:
that of the first phase that did not go well, and 5 if there was no test in any.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from htcondor_vpn.linux.namespaces import die_with_parent

_WORKERS = "HTCONDOR_VPN_TEST_WORKERS"
FOR_ROOT = "for the machine's root"
PHASES = {
    "beside each other": ["--for-root", "never", "--alone", "never", "-n", os.environ.get(_WORKERS, "4")],
    "alone": ["--for-root", "never", "--alone", "only", "-n", "0"],
    FOR_ROOT: ["--for-root", "only", "-n", "0"],
}
LONGEST_SECONDS = 2400  # of a phase
ENDING_SECONDS = 60
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def run(argv: list[str]) -> tuple[int, list[str]]:
    """Runs pytest, shows what it says as it says it, and returns its exit code and the lines.

    One that takes too long is interrupted, so that it names what it was at, and killed if that does not end it.
    """
    colours = ["--color=yes"] if sys.stdout.isatty() else []
    said = bytearray()
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *colours, *argv],
        stdout=subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
    ) as process:
        watches = [
            threading.Timer(LONGEST_SECONDS, process.send_signal, [signal.SIGINT]),
            threading.Timer(LONGEST_SECONDS + ENDING_SECONDS, process.kill),
        ]
        for watch in watches:
            watch.start()
        while chunk := os.read(process.stdout.fileno(), 65536):
            said += chunk
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        for watch in watches:
            watch.cancel()
    return process.returncode, said.decode(errors="replace").splitlines()


def summary(lines: list[str], *also: str) -> list[str]:
    """Returns what failed, and what begins with `also`, of pytest's short summary, and its closing line."""
    plain = [_COLOURS.sub("", line) for line in lines if line]
    failed = [line for line in plain if line.startswith(("FAILED ", "ERROR ", *also))]
    return [*failed, *plain[-1:]]


def main(arguments: list[str]) -> int:
    """Runs all phases and returns an exit code of pytest's."""
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to pytest, too, which ends in order
    codes, last = [], []
    for name, options in PHASES.items():
        print(f"Tests {name}", flush=True)
        code, lines = run([*options, *arguments])
        codes.append(code)
        last += [f"Tests {name}:", *summary(lines, *(["SKIPPED "] if name == FOR_ROOT else []))]
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            break
    print("", *last, sep="\n", flush=True)
    failures = [code for code in codes if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)]
    return failures[0] if failures else min(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
