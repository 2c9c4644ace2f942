"""Workers, with real processes: what they relay, what they open, and what is left when one dies or there is none."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.tunnel.carrier import CarrierBusy
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.tunnel.carriers.segments import Segments
from htcondor_vpn.tunnel.workers.workers import MOST, Workers, worker_count
from htcondor_vpn.wire.stream import PlainStream
from htcondor_vpn.wire.trust import Trust

ADDRESS = IPv4Address("192.0.2.1")


def run(body: Callable[[Workers], Awaitable[None]], count: int = 2, workers: Workers | None = None) -> None:
    async def main() -> None:
        used = workers or Workers(count)
        used.start()
        try:
            await body(used)
        finally:
            await used.finish()
        assert not used.processes

    asyncio.run(asyncio.wait_for(main(), 90))


async def until(done: Callable[[], object]) -> None:
    while not done():
        await asyncio.sleep(0.01)


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


class Flow:
    """One that `workers` relay: `near` is the application, `far` the far side."""

    def __init__(self, workers: Workers, early: bytes = b"") -> None:
        self.near, application = connected()
        self.stream_sock, self.far = connected()
        for end in (self.near, self.far):
            end.setblocking(False)
        self.relaying = asyncio.ensure_future(workers.relay(PlainStream(self.stream_sock), application, early))

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.near, data)

    async def read(self, end: socket.socket) -> bytes:
        """All that comes until the end."""
        got = b""
        while data := await asyncio.get_running_loop().sock_recv(end, 1 << 16):
            got += data
        return got

    async def end(self) -> None:
        """Both sides end in order."""
        for end, other in ((self.near, self.far), (self.far, self.near)):
            end.shutdown(socket.SHUT_WR)
            await self.read(other)
        await self.relaying
        self.near.close()
        self.far.close()


@pytest.mark.parametrize("early", [b"", b"x" * 200_000])
def test_a_flow_is_handed_over_with_what_came_already(early: bytes) -> None:
    async def body(workers: Workers) -> None:
        flow = Flow(workers, early)
        await flow.say(b"question")
        flow.near.shutdown(socket.SHUT_WR)
        assert await flow.read(flow.far) == b"question"
        await asyncio.get_running_loop().sock_sendall(flow.far, b"answer")
        flow.far.shutdown(socket.SHUT_WR)
        assert await flow.read(flow.near) == early + b"answer"
        await flow.relaying
        assert flow.stream_sock.fileno() == -1
        carried = workers.carried
        assert (carried.bytes_to_plain, carried.bytes_from_plain) == (len(early) + 6, 8)
        assert workers.flows == 0
        flow.near.close()
        flow.far.close()

    run(body)


def test_flows_are_spread_and_who_dies_takes_its_own() -> None:
    async def body(workers: Workers) -> None:
        flows = [Flow(workers) for _ in range(6)]
        await until(lambda: workers.flows == 6)
        for flow in flows:
            await flow.say(b"x")
            assert await asyncio.get_running_loop().sock_recv(flow.far, 1) == b"x"
        assert [process.flows for process in workers.processes] == [3, 3]
        victim, other = (process.child.pid for process in workers.processes)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: workers.flows == 3)
        left = [flow for flow in flows if not flow.relaying.done()]
        for flow in flows:
            if flow not in left:
                for end in (flow.near, flow.far):
                    with pytest.raises(ConnectionResetError):
                        await flow.read(end)
                    end.close()
        await until(lambda: len(workers.processes) == 2)
        assert {process.child.pid for process in workers.processes} - {victim, other}
        await asyncio.gather(*(flow.end() for flow in left))
        assert workers.carried.bytes_from_plain >= 3

    run(body)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """Within half of the returned seconds a worker that is stopped is killed, not one that waits for its turn."""
    for module in ("worker", "workers"):
        monkeypatch.setattr(f"htcondor_vpn.tunnel.workers.{module}.TELL_SECONDS", 0.2)
    return 4.0


def test_who_is_stopped_gets_no_new_flow_and_is_replaced(quick: float) -> None:
    async def body(workers: Workers) -> None:
        flows = [Flow(workers) for _ in range(4)]
        for flow in flows:
            await flow.say(b"x")
            assert await asyncio.get_running_loop().sock_recv(flow.far, 1) == b"x"
        victim, other = workers.processes
        await until(lambda: workers.carried.bytes_from_plain == 4)  # each has told of its own
        os.kill(victim.child.pid, signal.SIGSTOP)
        unanswered = Flow(workers)  # it goes there: the first of those that have the fewest
        await until(lambda: victim.flows == 3)
        await unanswered.say(b"x")
        await until(lambda: not victim.answers)
        late = [Flow(workers) for _ in range(3)]
        for flow in late:
            await flow.say(b"x")
            assert await asyncio.get_running_loop().sock_recv(flow.far, 1) == b"x"
        assert (victim.flows, other.flows) == (3, 5)
        await until(lambda: workers.flows == 5)
        for flow in [*(flow for flow in flows if flow.relaying.done()), unanswered]:
            for end in (flow.near, flow.far):
                with pytest.raises(ConnectionResetError):
                    await flow.read(end)
                end.close()
        assert victim.ended.result() == signal.SIGKILL
        await until(lambda: len(workers.processes) == 2 and workers.carried.bytes_from_plain == 7)
        assert other in workers.processes
        await asyncio.gather(*(flow.end() for flow in [*flows, *late] if not flow.relaying.done()))

    run(body)


def test_nobody_is_killed_where_all_were_stopped(quick: float) -> None:
    async def body(workers: Workers) -> None:
        flow, before = Flow(workers), list(workers.processes)
        for _ in range(2):
            for process in before:
                os.kill(process.child.pid, signal.SIGSTOP)
            select.select([], [], [], quick)  # this process does nothing as well; that it lasts is the experiment
            for process in before:
                os.kill(process.child.pid, signal.SIGCONT)
            await flow.say(b"x")
            assert await asyncio.get_running_loop().sock_recv(flow.far, 1) == b"x"
        await flow.end()
        assert workers.processes == before

    run(body)


def test_a_flow_that_is_cut_is_reset_on_both_sides() -> None:
    async def body(workers: Workers) -> None:
        flow = Flow(workers)
        await flow.say(b"x")
        assert await asyncio.get_running_loop().sock_recv(flow.far, 1) == b"x"
        flow.relaying.cancel()
        for end in (flow.near, flow.far):
            with pytest.raises(ConnectionResetError):
                await flow.read(end)
            end.close()
        assert flow.stream_sock.fileno() == -1

    run(body)


@pytest.mark.parametrize("why", ["none", "full", "no descriptors", "no processes"])
def test_without_a_worker_that_takes_it_the_engine_relays(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def no_processes(*_: Any) -> Any:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    if why == "no processes":
        monkeypatch.setattr("htcondor_vpn.tunnel.workers.workers.fork_child", no_processes)

    async def body(workers: Workers) -> None:
        if why == "full":
            workers._room = 0
        elif why == "no descriptors":
            monkeypatch.setattr(os, "dup", no_descriptors)
        flow = Flow(workers)
        await flow.say(b"x")
        assert await asyncio.get_running_loop().sock_recv(flow.far, 1) == b"x"
        assert sum(process.flows for process in workers.processes) == 0
        await flow.end()
        assert workers.carried.bytes_from_plain == 1
        monkeypatch.undo()
        await until(lambda: why != "no processes" or len(workers.processes) == 2)

    run(body, 0 if why == "none" else 2)


class Path:
    """Stands in for the way to a gateway, which fails, or never ends."""

    def __init__(self, error: Exception | None) -> None:
        self.segments, self.error, self.dialled = Segments("gateway"), error, asyncio.Event()

    async def dial(self) -> socket.socket:
        self.dialled.set()
        if self.error is None:
            await asyncio.Event().wait()
        assert self.error is not None
        raise self.error

    def forget(self) -> None:
        """Nothing is kept."""


def opened_through(body: Callable[[Workers, Path, Any], Awaitable[None]], error: Exception | None) -> None:
    trust = Trust(lambda: ("pin-sha256:" + "A" * 43 + "=",), None, None)
    workers = Workers(2)
    workers.admit(trust, None)

    async def with_opener(workers: Workers) -> None:
        path = Path(error)
        await body(workers, path, workers.opener(GatewayConnections("gateway", 1, trust, None, path)))

    run(with_opener, workers=workers)


def test_what_fails_here_for_a_worker_fails_as_if_it_were_here() -> None:
    async def body(workers: Workers, path: Path, opener: Any) -> None:
        with pytest.raises(GatewayUnreachable, match="cannot be reached: .*refused"):
            await opener.open_flow(ADDRESS, 80)
        await until(lambda: not any(process.flows for process in workers.processes))

    opened_through(body, OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))


def test_no_descriptors_in_a_worker_or_here_are_not_the_gateways_fault() -> None:
    async def body(workers: Workers, path: Path, opener: Any) -> None:
        with pytest.raises(GatewayUnreachable) as failure:
            await opener.open_flow(ADDRESS, 80)
        assert isinstance(failure.value.__cause__, OSError)
        assert failure.value.__cause__.errno == errno.EMFILE

    opened_through(body, OSError(errno.EMFILE, os.strerror(errno.EMFILE)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_worker_was_opening_another_one_opens(number: int, quick: float) -> None:
    async def body(workers: Workers, path: Path, opener: Any) -> None:
        opening = asyncio.ensure_future(opener.open_flow(ADDRESS, 80))
        await path.dialled.wait()
        path.dialled.clear()
        busy = next(process for process in workers.processes if process.flows)
        os.kill(busy.child.pid, number)
        await path.dialled.wait()
        other = next(process for process in workers.processes if process.flows)
        assert other is not busy
        os.kill(other.child.pid, number)
        with pytest.raises(CarrierBusy, match="died or does not answer"):
            await opening

    opened_through(body, None)


def test_a_flow_that_is_given_up_while_it_is_opened() -> None:
    async def body(workers: Workers, path: Path, opener: Any) -> None:
        opening = asyncio.ensure_future(opener.open_flow(ADDRESS, 80))
        await path.dialled.wait()
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        assert not any(process.flows for process in workers.processes)

    opened_through(body, None)


def test_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, count in ((1, 0), (2, 2), (4, 4), (128, MOST)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert worker_count(0) == count
    assert [worker_count(wanted) for wanted in (1, 2, 32)] == [0, 2, 32]
