"""Who is connected: the limits, and the end of those whose credential ends."""

from __future__ import annotations

import asyncio
import enum
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from htcondor_vpn.errors import VpnError
from htcondor_vpn.gateway.operation.seats import Seats
from htcondor_vpn.gateway.operation.shares import Rates, Shares
from htcondor_vpn.gateway.serving.flows import Flows
from htcondor_vpn.gateway.serving.standing import Standing
from htcondor_vpn.gateway.trust.gatekeeper import Gatekeeper
from htcondor_vpn.gateway.trust.identity import Identity
from htcondor_vpn.wire.deadline import Deadline

log = logging.getLogger(__name__)

#: How often the database is asked whether it changed: how long the flows of a revoked credential may go on.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """What a gateway puts up with, all its processes together. Times are in seconds."""

    connections: int = 8000
    connections_per_token: int = 2000
    strangers: int = 4000  # connections of one process that have not authenticated
    strangers_per_address: int = 1000  # likewise, of one source address
    handshakes_per_second: float = 100.0  # likewise
    head_seconds: float = 10.0  # handshake and first head together, and every later head
    idle_seconds: float = 90.0  # between two requests
    connect_seconds: float = 10.0  # to a pilot's destination, its name's look-up included
    grace_seconds: float = 30.0  # for flows to end after the gateway was told to


class Crowd(enum.Enum):
    """Whose connections are too many; the value is the HTTP status that says so."""

    GATEWAY = 503
    TOKEN = 429


class Connected(Protocol):
    """What the roster has to know of a session."""

    def cut(self, reason: str) -> None:
        """Ends the session at once."""


class Roster:
    """The sessions, and whose each is."""

    def __init__(
        self,
        limits: Limits,
        gatekeeper: Gatekeeper,
        seats: Seats | None = None,
        column: int = 0,
        shares: Shares | None = None,
    ) -> None:
        self.flows = Flows()
        self.shares = shares or Shares(Rates())
        self.draining = False  # whether flows are begun no more
        self.told: Standing | None = None  # by a parent, which knows the other processes too
        self._limits, self._gatekeeper = limits, gatekeeper
        self._seats, self._column = seats or Seats(), column
        self._sessions: set[Connected] = set()
        self._identities: dict[Connected, Identity] = {}
        self._changed = asyncio.Event()

    @property
    def sessions(self) -> tuple[Connected, ...]:
        return tuple(self._sessions)

    @property
    def closed(self) -> bool:
        """Whether there is not even room to turn anyone away: the others wait in the listening sockets' queues."""
        return self._seats.total() >= self._limits.connections + 64

    def standing(self) -> Standing:
        """How the gateway stands."""
        full = self._seats.total() / self._limits.connections
        if self.told is None:
            return Standing(len(self.flows), min(1.0, full), self.draining)
        return replace(self.told, load=min(1.0, max(full, self.told.load)), draining=self.draining)

    async def without_flows(self) -> None:
        """Waits until this process has no flow."""
        while self.flows:
            await self.left(_LOOK_SECONDS)

    def enter(self, session: Connected) -> None:
        self._sessions.add(session)
        self._seats.enter(self._column)

    def leave(self, session: Connected) -> None:
        self._sessions.discard(session)
        self._seats.leave(self._column)
        self._unbind(session)
        self._changed.set()

    def bind(self, session: Connected, identity: Identity) -> Crowd | None:
        """Puts a session under an identity, where it stays for its later requests; or returns whose limit is reached.

        A later request may show a renewed credential of the same pilot.
        """
        known = self._identities.get(session)
        if known is None or known.name != identity.name:
            if self._seats.total() > self._limits.connections:
                return Crowd.GATEWAY
            self._unbind(session)
            if not self._seats.bind(self._column, identity.name, self._limits.connections_per_token):
                return Crowd.TOKEN
        self._identities[session] = identity
        return None

    def _unbind(self, session: Connected) -> None:
        identity = self._identities.pop(session, None)
        if identity is not None:
            self._seats.unbind(self._column, identity.name)

    async def left(self, timeout_seconds: float) -> None:
        """Waits until a session leaves or the time is over."""
        self._changed.clear()
        with suppress(asyncio.TimeoutError), Deadline(timeout_seconds):
            await self._changed.wait()

    async def watch_credentials(self) -> None:
        """Cuts the sessions whose credential was revoked, or has expired; runs until cancelled.

        A change by another process cannot be waited for in SQLite, so it is asked every second whether there was one.
        """
        problem = ""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._gatekeeper.refresh()
                problem = ""
            except VpnError as error:  # what is known counts until it is over
                if str(error) != problem:
                    log.error("%s", error)
                problem = str(error)
            verdicts = {identity: self._gatekeeper.ended(identity) for identity in set(self._identities.values())}
            for session, identity in list(self._identities.items()):
                reason = verdicts[identity]
                if reason is not None:
                    session.cut(reason)
