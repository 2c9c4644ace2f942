"""Associations: what they keep, how many there may be, and when they end. Kernel and gateway are stood in for."""

import asyncio
import socket

import pytest

from htcondor_vpn.addresses import FIRST_INDEX, PILOT_V4, PILOT_V6, job_link
from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.linux.datagrams import DatagramSockets, Undelivered, Way
from htcondor_vpn.tunnel.carrier import FlowRefused
from htcondor_vpn.tunnel.catching import datagrams
from htcondor_vpn.tunnel.catching.datagrams import DatagramCarrier


class Pipe:
    """Stands in for a `DatagramPipe`."""

    def __init__(self):
        self.sent, self.closed = [], False
        self.last = asyncio.get_running_loop().time()
        self._over = asyncio.Event()

    def start(self, take):
        self.take = take

    def send(self, payload):
        self.last = asyncio.get_running_loop().time()
        self.sent.append(payload)
        return payload != b"too much"

    def end(self):
        self._over.set()

    async def ended(self, timeout_seconds):
        try:
            await asyncio.wait_for(self._over.wait(), timeout_seconds)
        except asyncio.TimeoutError:
            return False
        return True

    def close(self):
        self.closed = True


class Inside:
    """Stands in for the inner namespace: datagrams go in, answers and refusals come out."""

    def __init__(self, monkeypatch):
        self.answers, self.refusals, self.pipes, self.opened = [], [], [], []
        self.failure = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._queue = []
        self._readable, self._ring = socket.socketpair()
        self._readable.setblocking(False)
        monkeypatch.setattr(datagrams, "receive", self._receive)
        monkeypatch.setattr(datagrams, "answer", lambda _, way, payload: self.answers.append((way, payload)))
        monkeypatch.setattr(datagrams, "refuse", lambda _, way, why, size: self.refusals.append((way, why, size)))
        self.carrier = DatagramCarrier(self._open)
        self.carrier.serve(DatagramSockets(self._readable, self._readable, self._readable))

    async def _open(self, address, port):
        self.opened.append((str(address), port))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.pipes.append(Pipe())
        return self.pipes[-1]

    def _receive(self, _):
        if not self._queue:
            raise BlockingIOError
        self._readable.recv(1)
        return self._queue.pop(0)

    async def send(self, way, *payloads):
        for payload in payloads:
            self._queue.append((way, payload))
            self._ring.send(b"x")
        while self._queue:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)

    def close(self):
        asyncio.get_running_loop().remove_reader(self._readable)
        self._readable.close()
        self._ring.close()


@pytest.fixture
def go(monkeypatch):
    """Runs a coroutine function with an `Inside`, in a loop of its own."""

    def go(test):
        async def run():
            inside = Inside(monkeypatch)
            try:
                await asyncio.wait_for(test(inside), 60)
            finally:
                inside.close()
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(run())

    return go


def way(port=7, source="198.18.0.1", source_port=1234, link=1):
    return Way((source, source_port), ("203.0.113.20", port), link)


def test_what_comes_while_it_opens_goes_first_and_in_order(go):
    async def test(inside):
        inside.gate.clear()
        await inside.send(way(), b"1", b"2")
        inside.gate.set()
        await inside.send(way(), b"3")
        assert [pipe.sent for pipe in inside.pipes] == [[b"1", b"2", b"3"]]
        assert inside.carrier.traffic.bytes_from_plain == 3

    go(test)


def test_what_waits_is_bounded(go):
    async def test(inside):
        inside.gate.clear()
        await inside.send(way(), *[bytes(10)] * 100)
        await inside.send(way(8), *[bytes(60000)] * 10)
        inside.gate.set()
        await inside.send(way(9))
        assert [len(pipe.sent) for pipe in inside.pipes] == [64, 4]

    go(test)


def test_an_answer_goes_back_and_is_counted_and_what_is_dropped_is_not(go):
    async def test(inside):
        await inside.send(way(), b"question", b"too much")
        inside.pipes[0].take(b"answer")
        inside.pipes[0].take(None)
        assert inside.answers == [(way(), b"answer")]
        assert inside.refusals == [(way(), Undelivered.NO_SUCH_PORT, 8)]
        assert (inside.carrier.traffic.bytes_from_plain, inside.carrier.traffic.bytes_to_plain) == (8, 6)

    go(test)


def test_one_association_for_each_pair_of_ends(go):
    async def test(inside):
        for each in (way(), way(8), way(source_port=5), way(source="198.18.0.2"), way()):
            await inside.send(each, b"x")
        assert len(inside.pipes) == inside.carrier.open == 4

    go(test)


def test_a_refusal_is_told_each_time_and_asked_for_once(go):
    async def test(inside):
        inside.failure = FlowRefused(403, "no")
        for _ in range(3):
            await inside.send(way(), b"x")
        assert inside.refusals == [(way(), Undelivered.PROHIBITED, 1)] * 3
        assert len(inside.opened) == 1

    go(test)


def test_a_tunnel_that_is_down_is_told_each_time_and_tried_again(go):
    async def test(inside):
        inside.failure = GatewayUnreachable("it is down")
        await inside.send(way(), b"x")
        assert [refused[1] for refused in inside.refusals] == [Undelivered.PROHIBITED]
        assert inside.carrier.open == 0
        inside.failure = None
        await inside.send(way(), b"x")
        assert inside.pipes[0].sent == [b"x"]

    go(test)


def test_one_link_can_have_so_many_and_others_still_have_room(go, monkeypatch):
    async def test(inside):
        for port in range(1, 301):
            await inside.send(way(port), b"x")
        assert len(inside.pipes) == 256
        await inside.send(way(link=2), b"x")
        assert len(inside.pipes) == 257
        monkeypatch.setattr(datagrams, "_YIELDS_SECONDS", 0)
        await inside.send(way(1), b"y")  # so that port 2 is the one that has been idle longest
        await inside.send(way(1000), b"x")
        assert [index for index, pipe in enumerate(inside.pipes) if pipe.closed] == [1]
        assert inside.carrier.open == 257

    go(test)


def test_all_links_together_can_have_so_many(go, monkeypatch):
    monkeypatch.setattr(datagrams, "_MAX_ASSOCIATIONS", 3)

    async def test(inside):
        for number in range(5):
            await inside.send(way(link=number), b"x")
        assert len(inside.pipes) == 3

    go(test)


@pytest.mark.parametrize("forged", [PILOT_V4, PILOT_V6, *job_link(4), job_link(3).broker_v6, "2001:db8::1"])
def test_a_job_has_its_own_addresses_only(go, forged):
    """IPv6 lets anyone choose a source address; its link a job cannot choose."""

    async def test(inside):
        link = FIRST_INDEX + 2 * 3
        await inside.send(way(source=str(forged), link=link), b"x")
        assert inside.pipes == []
        for own in (job_link(3).job_v4, job_link(3).job_v6):
            await inside.send(way(source=str(own), link=link), b"x")
        assert len(inside.pipes) == 2

    go(test)


def test_idle_ones_end_and_those_to_a_resolver_sooner(go, monkeypatch):
    monkeypatch.setattr(datagrams, "_RESOLVED_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(datagrams, "_IDLE_SECONDS", 4)

    async def test(inside):
        for each in (way(53), way(54), way(53, source_port=1)):
            await inside.send(each, b"x")
        for pipe in inside.pipes[:2]:
            pipe.take(b"answer")
        while not inside.pipes[0].closed:
            await asyncio.sleep(0.01)
        assert [pipe.closed for pipe in inside.pipes] == [True, False, False]
        while inside.carrier.open:
            await asyncio.sleep(0.01)
        assert all(pipe.closed for pipe in inside.pipes)

    go(test)


def test_the_end_waits_for_what_is_on_its_way_alone(go):
    async def test(inside):
        await inside.send(way(8), b"idle")
        inside.failure = FlowRefused(403, "no")
        await inside.send(way(9), b"refused")
        inside.failure = None
        inside.gate.clear()
        await inside.send(way(), b"last")
        finishing = asyncio.ensure_future(inside.carrier.finish())
        await asyncio.sleep(0.05)
        assert not finishing.done()
        inside.gate.set()
        await asyncio.wait_for(finishing, 30)
        assert inside.pipes[1].sent == [b"last"]
        assert all(pipe.closed for pipe in inside.pipes)

    go(test)
