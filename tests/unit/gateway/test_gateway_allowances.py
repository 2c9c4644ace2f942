"""What a pilot may do in a time, counted over all processes of a gateway."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.gateway.operation.allowances import Allowances


@pytest.fixture
def allowances():
    allowances = Allowances()
    yield allowances
    allowances.close()


def taken(allowances, name, now, count=1, burst=5, per_second=2.0):
    return allowances.take(name, count, now, burst, per_second)


def test_a_burst_and_then_so_many_a_second(allowances):
    assert [taken(allowances, "a", 100.0) for _ in range(6)] == [True] * 5 + [False]
    assert taken(allowances, "b", 100.0)
    assert [taken(allowances, "a", 101.0) for _ in range(3)] == [True, True, False]
    assert not taken(allowances, "a", 101.0, count=6)
    assert [taken(allowances, "a", 200.0) for _ in range(6)] == [True] * 5 + [False]  # no more is saved up


def test_more_than_there_ever_is(allowances):
    assert not taken(allowances, "a", 1.0, count=6)
    assert taken(allowances, "a", 1.0, count=5)


def test_processes_share_them(allowances):
    assert taken(allowances, "a", 1.0, count=3)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if taken(allowances, "a", 1.0, count=2) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert not taken(allowances, "a", 1.0)


def test_rows_are_used_again(allowances):
    for number in range(50_000):  # more names than there are rows, one after the other
        assert taken(allowances, f"pilot-{number}", float(number))


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), max_size=40))
def test_never_more_than_a_burst_and_the_rate(steps):
    allowances = Allowances()
    try:
        now, granted = 1.0, 0
        for pause, count in steps:
            now += pause
            if taken(allowances, "a", now, count):
                granted += count
            assert granted <= 5 + 2.0 * (now - 1.0) + 1e-6
    finally:
        allowances.close()
