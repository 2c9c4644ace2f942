"""Which segments are tried after which loss. That it helps is seen in tests/linux/test_faults_path.py."""

import socket

import pytest

from htcondor_vpn.tunnel.carriers import segments
from htcondor_vpn.tunnel.carriers.segments import Segments, padding


@pytest.fixture
def lose(monkeypatch):
    """Loses a server whose question was repeated so often."""

    def lose(path, repeats=0, passed=False):
        monkeypatch.setattr(segments, "repeats", lambda _: repeats)
        if passed:
            path.passed()
        path.given_up(None)
        path.lost()
        return path.limit_bytes

    return lose


def test_smaller_ones_are_tried_while_large_ones_vanish(lose):
    path = Segments("gateway")
    assert [lose(path, repeats=4) for _ in range(4)] == [1220, 536, 0, 1220]


def test_a_server_that_does_not_answer_at_all_says_nothing_of_the_path(lose):
    path = Segments("gateway")
    assert [lose(path) for _ in range(3)] == [0, 0, 0]
    assert lose(path, repeats=1) == 0


def test_after_a_time_that_worked_large_ones_come_first(lose):
    path = Segments("gateway")
    assert lose(path, repeats=3) == 1220
    assert lose(path, repeats=3, passed=True) == 0


def test_a_question_is_larger_than_a_segment():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        assert len(padding(sock)) == 9000
    one, other = socket.socketpair()
    with one, other:
        assert len(padding(one)) == 1500
