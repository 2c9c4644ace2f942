"""What is told of the tests' phases, and which tests stay together."""

import os
from pathlib import Path

import neighbours
import phases
import pytest

TESTS = Path(phases.__file__).parent

PASSED = ["===== test session starts =====", "", "=== 3 passed in 0.1s ==="]
SKIPPED = ["SKIPPED [5] tests/root/test_a.py: this needs the machine's root", "=== 5 skipped in 0.1s ==="]
FAILED = [*PASSED[:2], "FAILED tests/unit/test_a.py::test_b - assert 1 == 2", "=== \x1b[31m1 failed\x1b[0m in 0.1s ==="]


@pytest.fixture
def answers(monkeypatch):
    """Says what pytest ends with in each phase; returns the arguments it was called with."""

    def answers(*answers):
        calls, left = [], list(answers)

        def run(argv):
            calls.append(argv)
            return left.pop(0)

        monkeypatch.setattr(phases, "run", run)
        return calls

    return answers


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((0, 0, 0), 0), ((0, 5, 0), 0), ((5, 0, 5), 0), ((5, 5, 0), 0), ((5, 5, 5), 5), ((1, 0, 0), 1), ((0, 1, 0), 1),
        ((0, 0, 1), 1), ((1, 5, 5), 1), ((5, 1, 5), 1), ((5, 5, 1), 1),
    ],
)  # fmt: skip
def test_all_phases_run_and_any_fails_the_whole(answers, codes, code):
    calls = answers(*((code, PASSED) for code in codes))
    assert phases.main(["-q", "tests/unit"]) == code
    assert [argv[-2:] for argv in calls] == 3 * [["-q", "tests/unit"]]
    assert [argv[:2] for argv in calls] == [["--for-root", which] for which in ("never", "never", "only")]
    assert [argv[2:4] for argv in calls[:2]] == [["--alone", which] for which in ("never", "only")]


@pytest.mark.parametrize("code", [2, 3, 4])
def test_what_was_broken_off_goes_no_further(answers, code):
    assert len(answers((code, PASSED))) == 0
    assert phases.main([]) == code


def test_the_last_lines_are_what_failed_and_the_closing_lines(answers, capsys):
    answers((1, FAILED), (0, [SKIPPED[0], *PASSED]), (0, SKIPPED))
    phases.main([])
    assert capsys.readouterr().out.splitlines()[-8:] == [
        "Tests beside each other:", FAILED[2], "=== 1 failed in 0.1s ===", "Tests alone:", "=== 3 passed in 0.1s ===",
        "Tests for the machine's root:", *SKIPPED,
    ]  # fmt: skip


@pytest.mark.parametrize("which", ["only", "never"])
def test_those_for_root_are_told_from_the_others(which):
    paths = ["tests/root", f"{__file__}::test_pytest_itself_is_shown_and_heard"]
    code, lines = phases.run(["--for-root", which, "--collect-only", "-q", *paths])
    assert code == 0
    assert any(line.startswith("tests/root/") for line in lines) == (which == "only")
    assert any(line.startswith("tests/unit/") for line in lines) == (which == "never")


def test_pytest_itself_is_shown_and_heard(capfdbinary):
    code, lines = phases.run(["--version"])
    assert code == 0
    assert lines[-1].startswith("pytest ")
    assert lines[-1].encode() in capfdbinary.readouterr().out


@pytest.mark.parametrize("limits", [(0, 60), (60, 0.1)], ids=["interrupted", "killed"])
def test_what_hangs_outside_of_any_test_is_ended(monkeypatch, tmp_path, limits):
    monkeypatch.setattr(phases, "LONGEST_SECONDS", limits[0])
    monkeypatch.setattr(phases, "ENDING_SECONDS", limits[1] - limits[0])
    path = tmp_path / "test_hangs.py"
    path.write_text("import time\ntime.sleep(600)\n")
    ended = phases.run([str(path)])[0]
    assert ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


def test_who_interrupts_beside_each_other_is_told_what_each_was_at(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(tmp_path)]))
    (tmp_path / "ours.py").write_text(
        "import neighbours\n"
        "from conftest import pytest_terminal_summary, pytest_xdist_make_scheduler\n"
        "neighbours.unit = str  # its files are not among ours\n"
    )
    path = tmp_path / "test_hangs.py"
    path.write_text(
        "import os, signal, time\n"
        "def test_hangs():\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    time.sleep(600)\n"
    )
    code, lines = phases.run(["-p", "ours", "-p", "xdist", "-n", "1", f"--rootdir={tmp_path}", str(path)])
    assert code == pytest.ExitCode.INTERRUPTED
    assert "gw0 was at test_hangs.py::test_hangs" in lines


def test_a_test_that_hangs_fails_and_the_others_go_on(tmp_path):
    path = tmp_path / "test_hangs.py"
    path.write_text("import time\ndef test_hangs():\n    time.sleep(600)\ndef test_goes(): pass\n")
    configured = ["-c", str(TESTS.parent / "pyproject.toml"), "-o", "timeout=3"]
    code, lines = phases.run([*configured, str(path)])
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 passed" in lines[-1]
    assert any("time.sleep(600)" in line for line in lines)


@pytest.mark.parametrize(
    ("test", "unit"),
    [
        ("tests/linux/test_routes.py::test_a[b-c]", "tests/linux/test_routes.py::test_a[b-c]"),
        ("tests/linux/test_run_udp.py::test_a[b-c]", "tests/linux/test_run_udp.py"),
        ("tests/linux/test_run_engines.py::test_a[ssh by a hop-v4]", "tests/linux/test_run_engines.py ssh by a hop"),
        ("tests/pool/test_pool.py::test_a[sid]", "tests/pool/test_pool.py sid"),
        ("tests/pool/test_pool.py::test_a", "tests/pool/test_pool.py"),
        ("tests/unit/test_phases.py::test_a[b]", "tests/unit/test_phases.py"),
    ],
)
def test_tests_that_share_something_stay_together(test, unit):
    assert neighbours.unit(test) == unit
