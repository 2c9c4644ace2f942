"""The counts of connections that the processes of a gateway share."""

import os
import signal

import pytest

from htcondor_vpn.gateway.operation.seats import COLUMNS, Seats


@pytest.fixture
def seats():
    seats = Seats()
    yield seats
    seats.close()


def test_a_limit_is_that_of_all_columns_together(seats):
    assert seats.bind(0, "a", 3)
    assert seats.bind(1, "a", 3)
    assert seats.bind(COLUMNS - 1, "a", 3)
    assert not seats.bind(0, "a", 3)
    assert seats.bind(0, "b", 3)
    seats.unbind(1, "a")
    assert seats.bind(0, "a", 3)
    assert (seats.of("a"), seats.of("b"), seats.of("c")) == (3, 1, 0)


def test_a_process_that_is_gone_is_counted_off(seats):
    for column in (0, 1):
        seats.enter(column)
        seats.bind(column, "a", 9)
    seats.clear(1)
    assert (seats.total(), seats.of("a")) == (1, 1)


def test_rows_are_used_again(seats):
    for number in range(50_000):  # more names than there are rows, one after the other
        assert seats.bind(0, f"pilot-{number}", 1)
        seats.unbind(0, f"pilot-{number}")


def test_processes_share_it_and_none_takes_more(seats):
    """Four processes take as much as they get."""
    children = []
    for column in range(4):
        pid = os.fork()
        if not pid:
            taken = sum(seats.bind(column, "a", 100) for _ in range(200))
            os._exit(taken)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert sum(codes) == seats.of("a") == 100


@pytest.fixture
def holder(seats):
    """A process that has the lock, and keeps it until it is killed."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        with seats._locked():
            os.write(theirs, b"x")
            signal.pause()
    assert os.read(ours, 1) == b"x"
    for end in (ours, theirs):
        os.close(end)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_holder_that_is_killed_holds_up_nobody(seats, holder):
    os.kill(holder, signal.SIGKILL)
    assert seats.bind(0, "a", 1)


@pytest.mark.timeout(20)
def test_a_holder_that_is_stopped_does_not_hold_up_who_may_kill_it(seats, holder):
    seats.enter(1)
    seats.clear(1)
    assert seats.total() == 0


def test_another_program_can_share_it(seats):
    seats.bind(3, "a", 5)
    other = Seats(os.dup(seats.descriptor))
    assert other.of("a") == 1
    other.close()
    with pytest.raises(ValueError, match="not that of such a table"), open(os.devnull) as file:
        Seats(file.fileno())
