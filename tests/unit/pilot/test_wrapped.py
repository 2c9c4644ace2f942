"""A command inside another program: its exit code, and signals that reach it though the other one ignores them."""

import os
import signal
import subprocess
import sys

import pytest

IGNORES = "trap '' TERM QUIT INT HUP; \"$@\"; exit $?"


def start(*argv, wrapper=("sh", "-c", IGNORES, "wrapper")):
    code = (
        "import sys\nfrom htcondor_vpn.errors import VpnError\nfrom htcondor_vpn.pilot.wrapped import run_within\n"
        f"try: code = run_within({list(wrapper)!r}, sys.argv[1:])\n"
        "except VpnError as error: code = error.exit_code\n"
        "print('code', code)"
    )
    return subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("argv", "code"), [(["sh", "-c", "exit 3"], 3), (["/missing"], 127), (["/etc/passwd"], 126)])
def test_the_exit_code_comes_back(argv, code):
    assert start(*argv).communicate(timeout=60)[0] == f"code {code}\n"


@pytest.mark.parametrize("name", ["TERM", "QUIT", "HUP", "USR1"])
def test_a_signal_reaches_the_command(name):
    process = start("sh", "-c", f"trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.05; done")
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.Signals[f"SIG{name}"])
    assert process.communicate(timeout=60)[0] == "got\ncode 9\n"


def test_a_signal_before_there_is_a_command_reaches_the_wrapper():
    process = start("true", wrapper=["sh", "-c", "echo ready; exec sleep 100"])
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "code -15\n"


def test_a_command_that_has_ended_before_we_hear_of_it():
    """The wrapper stops us until its command is gone."""
    ended = "kill -STOP $PPID; \"$@\"; code=$?; kill -CONT $PPID; exit $code"
    assert start("sh", "-c", "exit 5", wrapper=["sh", "-c", ended, "wrapper"]).communicate(timeout=60)[0] == "code 5\n"


@pytest.mark.parametrize(("wrapper", "code"), [("/missing", 127), ("/etc/passwd", 126)])
def test_a_wrapper_that_cannot_be_run(wrapper, code):
    assert start("true", wrapper=[wrapper]).communicate(timeout=60)[0] == f"code {code}\n"
