"""Held connects: what they open, claim and give up, and how many there may be. Kernel and carrier are stood in for."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from waiting_queue import WaitingQueue, scenario, until

from htcondor_vpn.addresses import FIRST_INDEX, job_link
from htcondor_vpn.tunnel.carrier import FlowRefused
from htcondor_vpn.tunnel.catching import holding, waiting_packets
from htcondor_vpn.tunnel.catching.holding import Holder
from htcondor_vpn.tunnel.catching.refusals import Refusal
from htcondor_vpn.wire.fair_share import FairShare

SOURCE, FAR = ("198.18.0.1", 40000), ("203.0.113.20", 80)
LOOPBACK = 1


class Application:
    """Stands in for an accepted connection."""

    def __init__(self, source: Any = SOURCE) -> None:
        self.getpeername, self.getsockname = lambda: source, lambda: FAR


class Flow:
    """Stands in for a stream."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True


class Inside(WaitingQueue):
    """Stands in for the queue: SYNs go in, verdicts come out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.opened: list[Flow] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        monkeypatch.setattr(waiting_packets, "PacketQueue", lambda *_: self)
        monkeypatch.setattr(holding, "tcp_ends", lambda payload: self._ends[payload])
        self._ends: dict[bytes, Any] = {}
        self.open_flows = FairShare(sys.maxsize)
        self.holder = Holder(self._open, self.open_flows)
        self.holder.serve(self.socket)

    async def _open(self, address: Any, port: int) -> Any:
        flow = Flow()
        self.opened.append(flow)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return flow, b"early"

    def syn(self, source: Any = SOURCE, link: int = LOOPBACK) -> int:
        """Has a SYN arrive, and returns its number."""
        number, payload = self.put(link)
        self._ends[payload] = source, FAR
        self.holder.waiting.read(self)  # type: ignore[arg-type]
        return number

    def close(self) -> None:
        self.holder.finish()
        super().close()


def test_it_is_let_go_when_the_flow_is_open_and_claims_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(inside: Inside) -> None:
        number = inside.syn()
        await until(lambda: inside.opened)
        assert inside.verdicts == {}
        assert inside.holder.claim(Application()) is None  # type: ignore[arg-type]
        inside.gate.set()
        await until(lambda: inside.verdicts)
        assert inside.verdicts == {number: "accepted"}
        assert inside.holder.claim(Application(("198.18.0.1", 40001))) is None  # type: ignore[arg-type]
        claimed = inside.holder.claim(Application())  # type: ignore[arg-type]
        assert claimed == ((inside.opened[0], b"early"), LOOPBACK)  # type: ignore[comparison-overlap]
        assert inside.holder.claim(Application()) is None  # type: ignore[arg-type]
        await until(lambda: not inside.holder._held)
        assert not inside.opened[0].aborted
        inside.syn()  # the same ends anew
        await until(lambda: len(inside.opened) == 2)

    scenario(lambda: Inside(monkeypatch), play)


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [("connection_refused", Refusal.RESET), ("connection_timeout", "dropped"), ("", Refusal.HOST_UNREACHABLE)],
)
def test_it_is_refused_as_the_flow_was(monkeypatch: pytest.MonkeyPatch, reason: str, verdict: Any) -> None:
    async def play(inside: Inside) -> None:
        inside.failure = FlowRefused(502, f"x; error={reason}")
        inside.gate.set()
        number = inside.syn()
        await until(lambda: inside.verdicts)
        assert inside.verdicts == {number: verdict}
        await until(lambda: not inside.holder._held)

    scenario(lambda: Inside(monkeypatch), play)


def test_of_several_syns_the_last_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(inside: Inside) -> None:
        first, second = inside.syn(), inside.syn()
        assert inside.verdicts == {first: "dropped"}
        inside.gate.set()
        await until(lambda: len(inside.verdicts) == 2)
        third = inside.syn()
        assert inside.verdicts == {first: "dropped", second: "accepted", third: "accepted"}
        assert len(inside.opened) == 1

    scenario(lambda: Inside(monkeypatch), play)


def test_a_flow_that_nobody_claims_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_CLAIM_SECONDS", 0.01)

    async def play(inside: Inside) -> None:
        inside.gate.set()
        inside.syn()
        await until(lambda: inside.opened)
        while inside.holder._held:
            await asyncio.sleep(0.01)
        assert inside.opened[0].aborted

    scenario(lambda: Inside(monkeypatch), play)


def test_at_the_end_nothing_is_let_go_and_all_flows_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(inside: Inside) -> None:
        inside.gate.set()
        inside.syn()
        await until(lambda: inside.verdicts)
        inside.gate.clear()
        number = inside.syn(("198.18.0.1", 40001))
        await until(lambda: len(inside.opened) == 2)
        inside.holder.finish()
        await until(lambda: not inside.holder._held)
        assert inside.opened[0].aborted
        assert inside.verdicts[number] == "dropped"

    scenario(lambda: Inside(monkeypatch), play)


def test_a_flood_by_one_job_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_MAX_HELD", 8)

    def flood(inside: Inside, job: int, port: int) -> int:
        """How many of a job's connects are held, of many."""
        before = len(inside.holder._held)
        for each in range(20):
            inside.syn((str(job_link(job).job_v4), port + each), FIRST_INDEX + 2 * job)
        return len(inside.holder._held) - before

    async def play(inside: Inside) -> None:
        assert [flood(inside, job, 1000) for job in range(3)] == [4, 2, 1]
        assert flood(inside, 0, 2000) == 0
        inside.syn()
        assert len(inside.holder._held) == 8

    scenario(lambda: Inside(monkeypatch), play)


def test_who_has_many_open_flows_has_no_more_connects_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def syns(inside: Inside, job: int, count: int) -> list[tuple[str, int]]:
        sources = [(str(job_link(job).job_v4), port) for port in range(count)]
        for source in sources:
            inside.syn(source, FIRST_INDEX + 2 * job)
        return sources

    async def play(inside: Inside) -> None:
        inside.open_flows.limit = 8
        inside.gate.set()
        claimed = 0
        for source in syns(inside, 0, 20):
            await until(lambda: len(inside.verdicts) == 20)
            claimed += inside.holder.claim(Application(source)) is not None  # type: ignore[arg-type]
        await until(lambda: not inside.holder._held)
        assert claimed == 4
        syns(inside, 0, 1)
        assert not inside.holder._held
        inside.open_flows.release(FIRST_INDEX)
        syns(inside, 0, 2)
        assert len(inside.holder._held) == 1
        syns(inside, 1, 20)
        assert len(inside.holder._held) == 3

    scenario(lambda: Inside(monkeypatch), play)


def test_what_nobody_claims_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_CLAIM_SECONDS", 0.01)

    async def play(inside: Inside) -> None:
        inside.open_flows.limit = 2
        inside.gate.set()
        for _ in range(3):
            inside.syn()
            await until(lambda: inside.holder._held)
            while inside.holder._held:
                await asyncio.sleep(0.01)
        assert len(inside.opened) == 3

    scenario(lambda: Inside(monkeypatch), play)


def test_a_forged_source_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(inside: Inside) -> None:
        number = inside.syn((str(job_link(1).job_v4), 1000), FIRST_INDEX)
        assert inside.verdicts == {number: "dropped"}

    scenario(lambda: Inside(monkeypatch), play)
