"""The stream gateway: accepts connections, and ends in order.

One process serves all connections in one loop. It is handed its listening sockets, and what processes share (tokens,
credentials) lies in the gateway's folder: so several can serve the same sockets.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence
from typing import Any

from htcondor_vpn.gateway.operation.allowances import Allowances
from htcondor_vpn.gateway.operation.listening import name_of
from htcondor_vpn.gateway.operation.seats import Seats
from htcondor_vpn.gateway.operation.shares import Shares
from htcondor_vpn.gateway.serving.connector import Connector
from htcondor_vpn.gateway.serving.destinations import Policy, PublicPolicy
from htcondor_vpn.gateway.serving.echoes import Echoes
from htcondor_vpn.gateway.serving.families import Families
from htcondor_vpn.gateway.serving.names import Names
from htcondor_vpn.gateway.serving.own_resources import OwnResources
from htcondor_vpn.gateway.serving.resolver import Resolver
from htcondor_vpn.gateway.serving.roster import Limits, Roster
from htcondor_vpn.gateway.serving.session import Services, Session
from htcondor_vpn.gateway.trust.gatekeeper import Gatekeeper
from htcondor_vpn.gateway.trust.renewal import ServerTls
from htcondor_vpn.gateway.trust.strangers import Strangers
from htcondor_vpn.wire.dialing import tune
from htcondor_vpn.wire.tls import reset

log = logging.getLogger(__name__)

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_SECONDS = 1.0
_RENEW_SECONDS = 1.0


class Gateway:
    """Made inside a running loop. `serve` runs until `stop`; a second `stop` ends what still goes on.

    `seats` counts its connections, in `column`, together with those of other processes that serve the same sockets, and
    `allowances` what its pilots have sent.
    """

    def __init__(
        self,
        tls: ServerTls,
        gatekeeper: Gatekeeper,
        policy: Policy,
        limits: Limits,
        *,
        resolver: Resolver | None = None,
        families: Families | None = None,
        seats: Seats | None = None,
        column: int = 0,
        shares: Shares | None = None,
        allowances: Allowances | None = None,
    ) -> None:
        seats = seats or Seats()
        roster = Roster(limits, gatekeeper, seats, column, shares)
        connector = Connector(policy, Names(), limits.connect_seconds)
        resources = OwnResources(
            families or Families(policy if isinstance(policy, PublicPolicy) else PublicPolicy()),
            resolver or Resolver(),
            roster.standing,
            Echoes(connector, allowances or Allowances(), seats, column),
        )
        self._strangers = Strangers(limits.strangers_per_address, limits.strangers, limits.handshakes_per_second)
        self._services = Services(tls, limits, gatekeeper, roster, connector, resources)
        self._tasks: dict[asyncio.Task[None], Session] = {}
        self._stop, self._kill = asyncio.Event(), asyncio.Event()
        self._draining, self._leaving = asyncio.Event(), asyncio.Event()

    @property
    def roster(self) -> Roster:
        return self._services.roster

    def stop(self) -> None:
        """Ends the gateway: the first time it lets flows go on for the grace period, the second time it does not."""
        (self._kill if self._stop.is_set() else self._stop).set()

    def retire(self) -> None:
        """Leaves new connections to other processes, and ends when the last flow has ended, however long that takes."""
        self._leaving.set()

    def drain(self) -> None:
        """Begins no flow any more, and ends the gateway when the last one has ended; probes are answered till then."""
        self.roster.draining = True
        self._draining.set()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Serves what comes in on `listeners`, which it closes at the end."""
        loop = asyncio.get_running_loop()
        stopped = loop.create_task(self._stop.wait())
        left, drained = loop.create_task(self._leaving.wait()), loop.create_task(self._drained())
        watch, renewing = loop.create_task(self._services.roster.watch_credentials()), loop.create_task(self._renew())
        accepting = [loop.create_task(self._accept(listener)) for listener in listeners]
        try:
            ends = [stopped, left, drained, watch, renewing, *accepting]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            outcomes = await _cancelled(accepting)
            for listener in listeners:
                listener.close()
            await self._end_sessions()
            outcomes += await _cancelled([stopped, left, drained, watch, renewing])
        finally:
            await _cancelled([stopped, left, drained, watch, renewing, *accepting])
            for listener in listeners:
                listener.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _renew(self) -> None:
        """Has new connections served with what the certificate's files hold now; runs until cancelled."""
        while True:
            self._services.tls.refresh()
            await asyncio.sleep(_RENEW_SECONDS)

    async def _accept(self, listener: socket.socket) -> None:
        loop, roster = asyncio.get_running_loop(), self._services.roster
        listener.setblocking(False)
        while not self._stop.is_set():
            if roster.closed:
                await roster.left(_RETRY_SECONDS)
                continue
            try:
                sock, address = listener.accept()
                sock.setblocking(False)
            except BlockingIOError:
                await _readable(listener)
                continue
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    log.error("cannot accept a connection: %s", error.strerror)
                    await roster.left(_RETRY_SECONDS)
                elif error.errno == errno.EBADF:
                    raise
                else:  # the connection broke before it was accepted, accept(2)
                    log.debug("a connection broke before it was accepted: %s", error.strerror)
                continue
            try:
                tune(sock)
            except OSError:
                sock.close()
                continue
            visit = self._strangers.visit(address[0])
            if visit is None:
                reset(sock)
                continue
            session = Session(self._services, sock, name_of(address), visit)
            roster.enter(session)
            task = loop.create_task(session.run())
            self._tasks[task] = session
            task.add_done_callback(self._ended)
            await asyncio.sleep(0)  # or one process would take all of a burst

    def _ended(self, task: asyncio.Task[None]) -> None:
        session = self._tasks.pop(task)
        session.release()
        self._services.roster.leave(session)
        if not task.cancelled() and task.exception() is not None:
            log.error("a session failed", exc_info=task.exception())

    async def _drained(self) -> None:
        """Returns once `drain` was called and the last flow has ended."""
        await self._draining.wait()
        for session in list(self._tasks.values()):
            session.leave_if_idle()
        await self.roster.without_flows()

    async def _end_sessions(self) -> None:
        """Lets the sessions end: first by themselves, then not.

        Who has just connected is heard but where the gateway ends: by one that leaves it is served, and by one that
        drains it is told so, as by its other processes.
        """
        hearing = self._leaving.is_set() or (self._draining.is_set() and not self._stop.is_set())
        for session in list(self._tasks.values()):
            session.finish(hear_first=hearing)
        # No others come: nobody accepts any more.
        ended: asyncio.Future[Any] = asyncio.gather(*self._tasks, return_exceptions=True)
        if hearing:
            await _first(ended, self._stop)
        await _first(ended, self._kill, self._services.limits.grace_seconds)
        if self._tasks:
            log.warning("%d connections are cut", len(self._tasks))
        for session in list(self._tasks.values()):
            session.cut("gateway_ended")
        await ended


async def _readable(listener: socket.socket) -> None:
    """Waits until there is a connection, and leaves it there: loop.sock_accept loses one when it is cancelled then."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(listener, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(listener)


async def _first(future: asyncio.Future[Any], event: asyncio.Event, timeout_seconds: float | None = None) -> None:
    """Waits for `future`, or `event`, or the end of the time."""
    waiting: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([future, waiting], timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Cancels `tasks` and returns how each ended: its exception, or what it returned."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
