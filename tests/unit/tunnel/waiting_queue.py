"""What stands in for a queue of the kernel's in which packets wait: they go in, and verdicts come out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from htcondor_vpn.linux.nfqueue import Packet

Queue = TypeVar("Queue", bound="WaitingQueue")


class WaitingQueue:
    """See `PacketQueue`; a packet's payload is its number."""

    def __init__(self) -> None:
        self.verdicts: dict[int, Any] = {}
        self.socket, self._bell = socket.socketpair()
        self.socket.setblocking(False)
        self._packets: list[Packet] = []
        self._numbers = 0

    def put(self, link: int) -> tuple[int, bytes]:
        """Has a packet come by a link; returns its number and payload."""
        self._numbers += 1
        payload = self._numbers.to_bytes(4, "big")
        self._packets.append(Packet(self._numbers, link, payload))
        return self._numbers, payload

    def receive(self) -> Packet:
        if not self._packets:
            raise BlockingIOError
        return self._packets.pop(0)

    def accept(self, number: int, mark: int | None = None) -> None:
        assert number not in self.verdicts
        self.verdicts[number] = mark or "accepted"

    def drop(self, number: int) -> None:
        assert number not in self.verdicts
        self.verdicts[number] = "dropped"

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()
        self._bell.close()


def scenario(make: Callable[[], Queue], play: Callable[[Queue], Awaitable[None]]) -> None:
    """Plays with what `make` makes in a loop of its own, within a deadline."""

    async def run() -> None:
        inside = make()
        try:
            await asyncio.wait_for(play(inside), 60)
        finally:
            inside.close()
            await asyncio.sleep(0)

    asyncio.run(run())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0)
