"""Holds the SYN of each connect until the far side has answered: only then is it let go, or refused.

So an application sees what it would see without a tunnel: its `connect` takes as long as the way there does, and fails
if the far side refuses. The flow is opened first; the connection that the SYN begins claims it, known by its two ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Hashable
from ipaddress import ip_address

from htcondor_vpn.addresses import HOLD_QUEUE, may_send
from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.descriptors import DescriptorBudget
from htcondor_vpn.linux.nfqueue import Ends, Packet, PacketQueue, tcp_ends
from htcondor_vpn.tunnel.carrier import Address, FarEnd, FlowRefused
from htcondor_vpn.tunnel.catching.refusals import refusal_of
from htcondor_vpn.tunnel.catching.shared_by import SharedBy, by_link
from htcondor_vpn.tunnel.catching.waiting_packets import WaitingPackets
from htcondor_vpn.wire.fair_share import FairShare

#: How long a flow waits for its connection. What comes between is the kernel's handshake with the application, by a
#: job's link that may be slow; an application that gave up meanwhile never claims it.
_CLAIM_SECONDS = 30.0

#: How many connects may be held, shared fairly by the links.
_MAX_HELD = 2048

log = logging.getLogger(__name__)

#: A flow: its far end, and what that has sent already.
Flow = tuple[FarEnd, bytes]

#: Opens a flow to an address and port; raises as `Carrier.open_flow`.
Open = Callable[[Address, int], Awaitable[Flow]]


class Holder:
    """Holds what the queue that it is told to `serve` shows.

    Those that `shared_by` tells apart share the room for it, and that for open flows: of `open_flows` each flow takes
    one, which whoever claims it releases.
    """

    def __init__(self, open_flow: Open, open_flows: FairShare, shared_by: SharedBy = by_link) -> None:
        self._open_flow, self._open_flows, self._shared_by = open_flow, open_flows, shared_by
        self.waiting = WaitingPackets(tcp_ends, self._arrived)
        self._held: dict[Ends, _Held] = {}
        self._share = FairShare(_MAX_HELD)
        self._descriptors = DescriptorBudget(2)  # the flow's, and that of the connection that claims it

    def serve(self, sock: socket.socket) -> None:
        """Starts to hold what comes to the queue of `sock`."""
        self.waiting.serve(sock, HOLD_QUEUE)

    def finish(self) -> None:
        """Looks at no more SYNs: none of them is let go any more."""
        self.waiting.finish()
        for held in self._held.values():
            held.task.cancel()

    def claim(self, application: socket.socket) -> tuple[Flow, Hashable] | None:
        """Returns the flow that was opened for an accepted connection, and whose it is; None if there is none."""
        try:
            held = self._held.get((application.getpeername()[:2], application.getsockname()[:2]))
        except OSError:  # it is gone already
            return None
        flow = held.claimed() if held is not None else None
        return (flow, held.owner) if held is not None and flow is not None else None

    def _arrived(self, queue: PacketQueue, packet: Packet, ends: Ends) -> None:
        owner = self._shared_by(ends[0][0], packet.interface)
        if (held := self._held.get(ends)) is not None:
            held.repeated(packet.number)
        elif may_send(ends[0][0], packet.interface) and self._has_room(owner):
            self._begin(queue, packet.number, owner, ends)
        else:  # the application's kernel sends it again, in a second and later
            log.debug("no room on link %d for a connect to %s port %d", packet.interface, *ends[1])
            queue.drop(packet.number)

    def _has_room(self, owner: Hashable) -> bool:
        if not self._descriptors.take(len(self._held)) or not self._share.take(owner):
            return False
        if self._open_flows.take(owner):
            return True
        self._share.release(owner)
        return False

    def _begin(self, queue: PacketQueue, number: int, owner: Hashable, ends: Ends) -> None:
        held = self._held[ends] = _Held(queue, number, owner, ends, self._open_flow)

        def over(task: asyncio.Task[None]) -> None:
            del self._held[ends]
            self._share.release(owner)
            if not held.was_claimed:
                self._open_flows.release(owner)
            if not task.cancelled() and task.exception() is not None:
                log.error("a connect failed", exc_info=task.exception())

        held.task.add_done_callback(over)


class _Held:
    """A connect, from its first SYN to its claim."""

    def __init__(self, queue: PacketQueue, number: int, owner: Hashable, ends: Ends, open_flow: Open) -> None:
        self.owner = owner
        self._queue, self._ends, self._open_flow = queue, ends, open_flow
        self._number: int | None = number  # of the SYN that is held; None once it was let go
        self._flow: Flow | None = None
        self.was_claimed = False
        self.task = asyncio.ensure_future(self._run())

    def repeated(self, number: int) -> None:
        """Another SYN with the same ends: the same connect, or a later one of an application that gave up before."""
        if self._number is None:
            self._queue.accept(number)
        else:
            self._queue.drop(self._number)
            self._number = number

    def claimed(self) -> Flow | None:
        flow, self._flow = self._flow, None
        if flow is not None:
            self.was_claimed = True
            self.task.cancel()
        return flow

    async def _run(self) -> None:
        host, port = self._ends[1]
        try:
            self._flow = await self._open_flow(ip_address(host), port)
        except (FlowRefused, VpnError, OSError, ssl.SSLError, asyncio.TimeoutError) as error:
            log.info("no flow to %s port %d: %s", host, port, error)
            refusal = refusal_of(error)
            if refusal is None:
                self._drop()
            else:
                self._let_go(refusal)
            return
        except BaseException:
            self._drop()
            raise
        try:
            self._let_go(None)
            await asyncio.sleep(_CLAIM_SECONDS)
            log.info("the flow to %s port %d is closed: its application gave up", host, port)
        finally:
            if self._flow is not None:
                self._flow[0].abort()

    def _let_go(self, mark: int | None) -> None:
        assert self._number is not None
        self._queue.accept(self._number, mark)
        self._number = None

    def _drop(self) -> None:
        assert self._number is not None
        self._queue.drop(self._number)
