"""Packets that wait in a queue of the kernel's until the far side has answered, shown to who decides about them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from htcondor_vpn.addresses import POLICY_MARK
from htcondor_vpn.linux.nfqueue import Packet, PacketQueue

_AT_ONCE = 64

Parsed = TypeVar("Parsed")

log = logging.getLogger(__name__)


class WaitingPackets(Generic[Parsed]):
    """Calls `decide` with the queue, each packet in it, and what `parse` makes of its bytes.

    A packet for which `parse` raises ValueError is dropped.
    """

    def __init__(
        self, parse: Callable[[bytes], Parsed], decide: Callable[[PacketQueue, Packet, Parsed], None]
    ) -> None:
        self._parse, self._decide = parse, decide
        self._queues: list[PacketQueue] = []

    def serve(self, sock: socket.socket, number: int) -> None:
        """Starts to show what comes to the queue `number`, whose socket that is."""
        queue = PacketQueue(sock, number)
        self._queues.append(queue)
        asyncio.get_running_loop().add_reader(sock, self.read, queue)

    def finish(self) -> None:
        """Looks at no more packets: none of them is let go any more."""
        for queue in self._queues:
            asyncio.get_running_loop().remove_reader(queue.socket)

    def read(self, queue: PacketQueue) -> None:
        """Takes what is there, but leaves the loop to others in between."""
        for _ in range(_AT_ONCE):
            try:
                packet = queue.receive()
            except BlockingIOError:
                return
            if packet is not None:
                self._shown(queue, packet)

    def _shown(self, queue: PacketQueue, packet: Packet) -> None:
        if packet.mark == POLICY_MARK:  # it will be refused, by a rule that it has not come to yet
            queue.accept(packet.number)
            return
        try:
            parsed = self._parse(packet.payload)
        except ValueError as error:
            log.debug("a packet on link %d is dropped: %s", packet.interface, error)
            queue.drop(packet.number)
        else:
            self._decide(queue, packet, parsed)
