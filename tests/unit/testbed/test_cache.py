"""Folders that are made once: by one caller, and whole or not at all."""

import threading

import pytest

from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.testbed.cache import make_once, replaced


def test_two_callers_at_once_make_it_once(tmp_path):
    folder, made = tmp_path / "cache/sid", []
    second_is_there = threading.Event()

    def is_made():
        if threading.current_thread() is second:
            second_is_there.set()
        return folder.exists()

    def make():
        made.append(threading.current_thread())
        assert second_is_there.wait(60)
        with replaced(folder) as (new, _):
            (new / "program").touch()

    first, second = (threading.Thread(target=make_once, args=("it", folder, is_made, make)) for _ in range(2))
    first.start()
    while not made:
        first.join(0.01)
    second.start()
    for each in (first, second):
        each.join(60)
    assert made == [first]
    assert [path.name for path in folder.iterdir()] == ["program"]


def test_what_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    folder = tmp_path / "sid"
    with replaced(folder) as (new, work):
        (new / "old").touch()
        (work / "packages").mkdir()

    def fail():
        with replaced(folder) as (new, _):
            (new / "half").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["sid", "sid/old"]


def test_what_a_killed_attempt_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".sid-x7/new").mkdir(parents=True)
    with replaced(tmp_path / "sid") as (new, _):
        (new / "program").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["sid"]


def test_a_failed_programs_words_are_told(tmp_path):
    with pytest.raises(VpnError, match="the HTCondor cannot be had: sh: E: no such suite: .*HTCONDOR_VPN_TEST_MIRROR"):
        make_once(
            "the HTCondor", tmp_path / "sid", lambda: False,
            lambda: run_program(["sh", "-c", "echo noise >&2; echo E: no such suite. >&2; echo more >&2; exit 1"]),
        )  # fmt: skip
