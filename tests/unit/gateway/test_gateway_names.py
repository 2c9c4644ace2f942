"""Looking names up, where the name service takes its time."""

import asyncio
import errno
import socket
import threading
from ipaddress import ip_address

import pytest
from streams import eventually

from htcondor_vpn.gateway.serving import names as module
from htcondor_vpn.gateway.serving.names import Names
from htcondor_vpn.wire.deadline import Deadline


class SlowNameService:
    """Answers about names of .test when it is told to, and knows how many questions it had and how many are under way.

    About anything else it answers as ever.
    """

    def __init__(self):
        self.asked = 0
        self.under_way = 0
        self.most = 0
        self.answer = threading.Event()
        self._lock = threading.Lock()
        self._others = socket.getaddrinfo

    def __call__(self, name, *arguments, **options):
        if not name.endswith(".test"):
            return self._others(name, *arguments, **options)
        with self._lock:
            self.asked += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.answer.wait(60)
        with self._lock:
            self.under_way -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]


@pytest.fixture
def slow(monkeypatch):
    service = SlowNameService()
    monkeypatch.setattr("htcondor_vpn.gateway.serving.names.socket.getaddrinfo", service)
    before = set(threading.enumerate())
    yield service
    service.answer.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)  # pytest makes a failure of what a thread raises


async def test_what_no_one_waits_for_counts_until_it_has_ended(slow, monkeypatch):
    monkeypatch.setattr(module, "_MAX_AT_ONCE", 4)
    names = Names()
    for number in range(6):
        with pytest.raises(asyncio.TimeoutError), Deadline(0.05):
            await names.lookup(f"n{number}.test", "alice")
    await eventually(lambda: slow.asked >= 2)  # their threads may not have run yet
    assert slow.asked == slow.most == 2, "the pilots' impatience makes threads without end"
    slow.answer.set()
    for _ in range(3):
        assert await names.lookup("later.test", "alice") == [ip_address("192.0.2.7")]


async def test_a_pilot_whose_names_are_not_answered_leaves_room_for_others(running, slow, monkeypatch):
    monkeypatch.setattr(module, "_MAX_AT_ONCE", 4)
    async with running(connect_seconds=60) as gateway:
        asking = [
            asyncio.ensure_future(gateway.ask(await gateway.client(), "CONNECT", f"silent{number}.test:80"))
            for number in range(6)
        ]
        await eventually(lambda: slow.asked >= 2)
        with socket.create_server(("127.0.0.1", 0)) as far_side:
            target = f"localhost:{far_side.getsockname()[1]}"
            answer = await gateway.ask(await gateway.client(), "CONNECT", target, token=gateway.tokens.add("bob"))
        assert answer.status == 200
        assert slow.asked == 2
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_no_thread_can_be_started(monkeypatch):
    monkeypatch.setattr(module, "_MAX_AT_ONCE", 2)
    names = Names()

    def refused(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", refused)
        for _ in range(2):
            with pytest.raises(OSError, match="new thread") as caught:
                await names.lookup("127.0.0.1", "alice")
            assert caught.value.errno == errno.EAGAIN
    assert await names.lookup("127.0.0.1", "alice") == [ip_address("127.0.0.1")]


async def test_a_loop_that_has_ended(slow):
    """The gateway ends while a name server is silent: the late answer harms nobody."""
    with pytest.raises(asyncio.TimeoutError), Deadline(0.05):
        await Names().lookup("some.test", "alice")
    while not slow.asked:  # its thread may not have run yet
        await asyncio.sleep(0.01)
    assert slow.asked == 1
