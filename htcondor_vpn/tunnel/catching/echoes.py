"""Carries ICMP echo: each request inside becomes one of the gateway's, and is answered only if the far side answers.

A request waits in a queue of the kernel's meanwhile. So the time that `ping` shows is that of the whole way, and what
the gateway says instead of an answer is told as by a router on the way.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Hashable, Sequence
from ipaddress import ip_address

from htcondor_vpn.addresses import ECHO_QUEUE, may_send
from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.echoes import EchoRequest, parse_request, reply
from htcondor_vpn.linux.nfqueue import Packet, PacketQueue
from htcondor_vpn.tunnel.carrier import Address, FlowRefused
from htcondor_vpn.tunnel.catching.refusals import refusal_of
from htcondor_vpn.tunnel.catching.shared_by import SharedBy, by_link
from htcondor_vpn.tunnel.catching.waiting_packets import WaitingPackets
from htcondor_vpn.wire.fair_share import FairShare

#: How many requests may be unanswered, shared fairly by the links; the rest is dropped.
_MAX_UNANSWERED = 128

log = logging.getLogger(__name__)

#: Sends a payload to an address and returns what came back; raises as `Carrier.echo`.
Ask = Callable[[Address, bytes], Awaitable[bytes]]


class EchoCarrier:
    """Carries what the queue that it is told to `serve` shows.

    Those that `shared_by` tells apart share the room for it.
    """

    def __init__(self, ask: Ask, shared_by: SharedBy = by_link) -> None:
        self._ask, self._shared_by = ask, shared_by
        self._share = FairShare(_MAX_UNANSWERED)
        self.waiting = WaitingPackets(parse_request, self._arrived)
        self._answers: dict[int, socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, sock: socket.socket, answers: Sequence[socket.socket]) -> None:
        """Starts to carry what comes to the queue of `sock`; replies go out by `answers`, one of each IP version."""
        self._answers = {6 if answer.family == socket.AF_INET6 else 4: answer for answer in answers}
        self.waiting.serve(sock, ECHO_QUEUE)

    def finish(self) -> None:
        """Takes no more requests, and gives up the unanswered ones."""
        self.waiting.finish()
        for task in self._tasks:
            task.cancel()

    def _arrived(self, queue: PacketQueue, packet: Packet, request: EchoRequest) -> None:
        owner = self._shared_by(request.source, packet.interface)
        if not may_send(request.source, packet.interface) or not self._share.take(owner):
            queue.drop(packet.number)
            return
        task = asyncio.ensure_future(self._carry(queue, packet, request))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._over(task, owner))

    def _over(self, task: asyncio.Task[None], owner: Hashable) -> None:
        self._tasks.discard(task)
        self._share.release(owner)
        if not task.cancelled() and task.exception() is not None:
            log.error("an echo request failed", exc_info=task.exception())

    async def _carry(self, queue: PacketQueue, packet: Packet, request: EchoRequest) -> None:
        address = ip_address(request.destination)
        try:
            payload = await self._ask(address, request.payload)
        except (FlowRefused, VpnError, OSError, ssl.SSLError, asyncio.TimeoutError) as error:
            log.debug("no echo from %s: %s", address, error)
            refusal = refusal_of(error)
            if refusal is None:
                queue.drop(packet.number)
            else:
                queue.accept(packet.number, refusal)
            return
        except BaseException:
            queue.drop(packet.number)
            raise
        queue.drop(packet.number)
        try:
            reply(self._answers[address.version], request, packet.interface, payload)
        except OSError as error:  # its sender has gone
            log.debug("an echo reply could not be delivered: %s", error)
