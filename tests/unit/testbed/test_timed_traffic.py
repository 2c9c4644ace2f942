"""What has arrived in a time, also where the one who counts was held up."""

import socket
import time

import pytest

from htcondor_vpn.testbed.timed_traffic import _count


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as far:
            near, _ = listener.accept()
            with near:
                yield near, far


class Looked:
    """A connection at whose counter somebody looks; `then` is called after the first look."""

    def __init__(self, connection, then):
        self._connection, self._then = connection, then

    def getsockopt(self, *words):
        said = self._connection.getsockopt(*words)
        then, self._then = self._then, lambda: None
        then()
        return said

    def __getattr__(self, name):
        return getattr(self._connection, name)


def test_what_has_waited_to_be_read_did_not_arrive_now(ends):
    near, far = ends
    far.sendall(bytes(100_000))
    begin = time.monotonic()
    assert _count(near, begin, begin + 0.3, 3) == [0, 0, 0]


def test_what_arrives_and_ends_is_counted_once(ends):
    near, far = ends

    def send():
        far.sendall(bytes(100_000))
        far.shutdown(socket.SHUT_WR)

    begin = time.monotonic()
    first, second = _count(Looked(near, send), begin, begin + 200, 2)
    assert first == pytest.approx(100_000, rel=0.05)  # of the 100 s of that part; the looks take a moment
    assert second == 0
