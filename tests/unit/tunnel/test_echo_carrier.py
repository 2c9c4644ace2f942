"""Echo requests that wait: what answers them. Kernel and carrier are stood in for."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from waiting_queue import WaitingQueue, scenario, until

from htcondor_vpn.addresses import FIRST_INDEX, job_link
from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.linux.echoes import EchoRequest
from htcondor_vpn.tunnel.carrier import FlowRefused
from htcondor_vpn.tunnel.catching import echoes, waiting_packets
from htcondor_vpn.tunnel.catching.echoes import EchoCarrier
from htcondor_vpn.tunnel.catching.refusals import Refusal


class Inside(WaitingQueue):
    """Stands in for the queue: requests go in, verdicts and replies come out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.replies: list[bytes] = []
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self._requests: dict[bytes, EchoRequest] = {}
        monkeypatch.setattr(waiting_packets, "PacketQueue", lambda *_: self)
        monkeypatch.setattr(echoes, "parse_request", lambda payload: self._requests[payload])
        monkeypatch.setattr(echoes, "reply", lambda sock, request, link, payload: self.replies.append(payload))
        self.carrier = EchoCarrier(self._ask)
        self.carrier.serve(self.socket, [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)])

    async def _ask(self, address: Any, payload: bytes) -> bytes:
        self.asked.append(str(address))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return payload + b" back"

    def request(self, source: str = "198.18.0.1", link: int = 1) -> int:
        number, payload = self.put(link)
        self._requests[payload] = EchoRequest(source, "203.0.113.20", 1, number, b"payload")
        self.carrier.waiting.read(self)  # type: ignore[arg-type]
        return number

    def close(self) -> None:
        self.carrier.finish()
        super().close()
        for sock in self.carrier._answers.values():
            sock.close()


def test_the_reply_is_what_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(inside: Inside) -> None:
        number = inside.request()
        await until(lambda: inside.asked)
        assert inside.replies == []
        inside.gate.set()
        await until(lambda: inside.replies)
        assert inside.replies == [b"payload back"]
        assert inside.verdicts == {number: "dropped"}

    scenario(lambda: Inside(monkeypatch), play)


@pytest.mark.parametrize(
    ("failure", "verdict"),
    [
        (FlowRefused(403, "x; error=destination_ip_prohibited"), Refusal.PROHIBITED),
        (FlowRefused(502, "x; error=destination_ip_unroutable"), Refusal.HOST_UNREACHABLE),
        (FlowRefused(501, "it carries no echo requests"), Refusal.PROHIBITED),
        (FlowRefused(404, ""), Refusal.PROHIBITED),
        (FlowRefused(504, "x; error=connection_timeout"), "dropped"),
        (GatewayUnreachable("gone"), Refusal.NO_ROUTE),
    ],
)
def test_without_an_answer_there_is_no_reply(monkeypatch: pytest.MonkeyPatch, failure: Exception, verdict: Any) -> None:
    async def play(inside: Inside) -> None:
        inside.failure = failure
        inside.gate.set()
        number = inside.request()
        await until(lambda: inside.verdicts)
        assert inside.verdicts == {number: verdict}
        assert inside.replies == []

    scenario(lambda: Inside(monkeypatch), play)


def test_a_flood_and_a_forged_source_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(inside: Inside) -> None:
        for _ in range(100):
            inside.request(str(job_link(0).job_v4), FIRST_INDEX)
        await asyncio.sleep(0)
        assert len(inside.asked) == 64
        forged = inside.request(str(job_link(1).job_v4), FIRST_INDEX)
        assert inside.verdicts[forged] == "dropped"
        inside.request()
        await asyncio.sleep(0)
        assert len(inside.asked) == 65

    scenario(lambda: Inside(monkeypatch), play)
