"""Carries the datagrams of the inner namespace: those between the same two ends share one way out.

Nothing waits for anything here. What the tunnel cannot take is dropped, and where a datagram cannot go at all its
sender is told as by a router on the way.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from ipaddress import ip_address

from htcondor_vpn.addresses import may_send
from htcondor_vpn.errors import VpnError
from htcondor_vpn.linux.datagrams import DatagramSockets, Undelivered, Way, answer, receive, refuse
from htcondor_vpn.tunnel.carrier import Address, FlowRefused
from htcondor_vpn.tunnel.catching.shared_by import SharedBy, by_link
from htcondor_vpn.wire.datagrams import LOOK_SECONDS, DatagramPipe
from htcondor_vpn.wire.relay import Traffic

#: How long an association outlives its last datagram: more than two minutes (RFC 4787, REQ-5). To a resolver, where
#: one answer ends the exchange, it is shorter, as REQ-5a allows.
_IDLE_SECONDS = 150.0
_RESOLVED_IDLE_SECONDS = 10.0
_DNS_PORT = 53

#: How long a refusal by the gateway is not asked for again.
_REFUSED_SECONDS = 5.0

#: How many associations there may be, and by one link: of one job, or of the pilot itself. Beyond that, one of the same
#: link gives way to the next, or one of the link that has most; but only if it has been idle for a second, which bounds
#: how fast a scan of many hosts can open connections.
_MAX_ASSOCIATIONS = 1024
_MAX_OF_ONE_LINK = 256
_YIELDS_SECONDS = 1.0

#: What may wait for an association to open.
_MAX_WAITING_BYTES = 256 * 1024
_MAX_WAITING = 64

_AT_ONCE = 64
_AT_ONCE_AT_END = 4096

log = logging.getLogger(__name__)

#: Opens a way to an address and port; raises as `Carrier.open_datagrams`.
Open = Callable[[Address, int], Awaitable[DatagramPipe]]


class DatagramCarrier:
    """Carries what arrives at the sockets it is told to `serve`. `traffic` counts UDP payload.

    There are at most `most` associations in all, and of each of those that `shared_by` tells apart a part of them.
    """

    def __init__(self, open: Open, shared_by: SharedBy = by_link, most: int | None = None) -> None:
        self.traffic = Traffic()
        self._open = open
        self._served: list[DatagramSockets] = []
        self._associations: dict[Way, _Association] = {}
        self._shared_by, self._most = shared_by, most or _MAX_ASSOCIATIONS
        self._of_owner: Counter[Hashable] = Counter()

    @property
    def open(self) -> int:
        """How many associations there are."""
        return len(self._associations)

    def serve(self, sockets: DatagramSockets) -> None:
        """Starts to carry what arrives at `sockets`."""
        self._served.append(sockets)
        asyncio.get_running_loop().add_reader(sockets.caught, self._readable, sockets)

    async def finish(self) -> None:
        """Takes no more datagrams, and returns when those that were taken have been sent."""
        for sockets in self._served:
            asyncio.get_running_loop().remove_reader(sockets.caught)
            self._readable(sockets, _AT_ONCE_AT_END)  # what COMMAND sent just before its end
        for association in list(self._associations.values()):
            association.finish()
        if tasks := [association.task for association in self._associations.values()]:
            await asyncio.wait(tasks)

    def _readable(self, sockets: DatagramSockets, at_once: int = _AT_ONCE) -> None:
        for _ in range(at_once):
            try:
                way, payload = receive(sockets.caught)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                log.debug("a datagram is skipped: %s", error)
                continue
            association = self._associations.get(way) or self._begin(sockets, way)
            if association is not None:
                association.send(payload)

    def _begin(self, sockets: DatagramSockets, way: Way) -> _Association | None:
        if not may_send(way.source[0], way.interface):
            log.debug("from link %d comes the source %s, which is not its own", way.interface, way.source[0])
            return None
        if not self._has_room(self._owner(way)):
            log.debug("no room for datagrams from %s port %d to %s port %d", *way.source, *way.destination)
            return None
        association = _Association(sockets, way, self._open, self.traffic)
        self._associations[way] = association
        self._of_owner[self._owner(way)] += 1
        association.task.add_done_callback(lambda task: self._done(way, task))
        return association

    def _owner(self, way: Way) -> Hashable:
        return self._shared_by(way.source[0], way.interface)

    def _has_room(self, owner: Hashable) -> bool:
        if self._of_owner.get(owner, 0) < _MAX_OF_ONE_LINK:
            if len(self._associations) < self._most:
                return True
            ((owner, _),) = self._of_owner.most_common(1)
        among = (each for way, each in self._associations.items() if self._owner(way) == owner)
        oldest = min(among, key=lambda association: association.last)
        if time.monotonic() - oldest.last < _YIELDS_SECONDS:
            return False
        self._forget(oldest.way)
        oldest.task.cancel()
        return True

    def _forget(self, way: Way) -> None:
        if self._associations.pop(way, None) is not None:
            owner = self._owner(way)
            self._of_owner[owner] -= 1
            if not self._of_owner[owner]:
                del self._of_owner[owner]

    def _done(self, way: Way, task: asyncio.Task[None]) -> None:
        association = self._associations.get(way)
        if association is not None and association.task is task:
            self._forget(way)
        if not task.cancelled() and task.exception() is not None:
            log.error("datagrams failed", exc_info=task.exception())


class _Association:
    """What passes between one source and one destination."""

    def __init__(self, sockets: DatagramSockets, way: Way, open: Open, traffic: Traffic) -> None:
        self.way, self.last = way, time.monotonic()
        self._sockets, self._open, self._traffic = sockets, open, traffic
        self._waiting: list[bytes] | None = []
        self._waiting_bytes = 0
        self._pipe: DatagramPipe | None = None
        self._refused: Undelivered | None = None
        self._sent_bytes = 0  # by the last datagram, for the ICMP message about it
        self._answered = self._finishing = False
        self.task = asyncio.ensure_future(self._run())

    def send(self, payload: bytes) -> None:
        """Sends a datagram onwards, drops it, or tells its sender that it cannot."""
        self.last, self._sent_bytes = time.monotonic(), len(payload)
        if self._refused is not None:
            self._tell(self._refused)
        elif self._pipe is not None:
            if self._pipe.send(payload):
                self._traffic.bytes_from_plain += len(payload)
        elif self._waiting is not None:
            self._waiting_bytes += len(payload)
            if self._waiting_bytes <= _MAX_WAITING_BYTES and len(self._waiting) < _MAX_WAITING:
                self._waiting.append(payload)

    def finish(self) -> None:
        """Ends the association as soon as what was taken has been sent."""
        self._finishing = True
        if self._refused is not None:
            self.task.cancel()
        elif self._pipe is not None:
            self._pipe.end()

    async def _run(self) -> None:
        host, port = self.way.destination
        try:
            pipe = await self._open(ip_address(host), port)
        except (FlowRefused, VpnError, OSError, ssl.SSLError, asyncio.TimeoutError) as error:
            told = logging.INFO if isinstance(error, FlowRefused) else logging.DEBUG  # the latter for each datagram
            log.log(told, "no datagrams to %s port %d: %s", host, port, error)
            self._refused = Undelivered.PROHIBITED
            self._tell(self._refused)
            if isinstance(error, FlowRefused) and not self._finishing:
                await asyncio.sleep(_REFUSED_SECONDS)
            return
        self._pipe = pipe
        try:
            pipe.start(self._arrived)
            for payload in self._waiting or ():
                self.send(payload)
            self._waiting = None
            if self._finishing:
                pipe.end()
            while (left := self._idle_seconds() - (time.monotonic() - pipe.last)) > 0:
                if await pipe.ended(min(left, _RESOLVED_IDLE_SECONDS, LOOK_SECONDS)):
                    break
        finally:
            pipe.close()

    def _idle_seconds(self) -> float:
        return _RESOLVED_IDLE_SECONDS if self._answered and self.way.destination[1] == _DNS_PORT else _IDLE_SECONDS

    def _arrived(self, payload: bytes | None) -> None:
        if payload is None:
            self._tell(Undelivered.NO_SUCH_PORT)
            return
        self._answered, self.last = True, time.monotonic()
        try:
            answer(self._sockets, self.way, payload)
        except OSError as error:  # its source has gone, or cannot take it now
            log.debug("a datagram could not be delivered: %s", error)
        else:
            self._traffic.bytes_to_plain += len(payload)

    def _tell(self, why: Undelivered) -> None:
        try:
            refuse(self._sockets, self.way, why, self._sent_bytes)
        except OSError as error:
            log.debug("%s could not be told: %s", self.way.source, error)
