"""The engine of a gateway for packets: many pilots by one link, each known by its addresses there."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable

from htcondor_vpn.gateway.wireguard_pilots import WireguardPilot
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.tunnel.stream import StreamEngine

#: How many ways for datagrams there may be: each is one descriptor.
_MAX_ASSOCIATIONS = 16384

log = logging.getLogger(__name__)


class PilotsEngine(StreamEngine):
    """See `Engine`. Limits hold for each pilot by itself; each connection is logged by its pilot's name at its end."""

    def __init__(self, pool: Pool) -> None:
        super().__init__([pool], (1, 1), shared_by=self._pilot_at, most_associations=_MAX_ASSOCIATIONS)
        self._names: dict[str, str] = {}
        self._keys: dict[str, bytes] = {}
        self._connections: defaultdict[str, set[asyncio.Task[None]]] = defaultdict(set)

    def know(self, pilots: Iterable[WireguardPilot]) -> None:
        """Takes these for all pilots that there are; the connections of others are cut.

        One that has another key now is another one, whatever its name.
        """
        pilots = list(pilots)
        before, self._keys = self._keys, {pilot.name: pilot.public_key for pilot in pilots}
        self._names = {str(address): pilot.name for pilot in pilots for address in pilot.addresses}
        for name in [name for name in self._connections if self._keys.get(name) != before.get(name)]:
            for connection in self._connections.pop(name):
                connection.cancel()

    def _pilot_at(self, source: str, _interface: int) -> Hashable:
        return self._names.get(source, source)

    async def _carry(self, application: socket.socket) -> None:
        try:
            source, (host, port) = application.getpeername()[0], application.getsockname()[:2]
        except OSError:  # it is gone already
            application.close()
            return
        name = self._names.get(source, source)
        task = asyncio.current_task()
        assert task is not None
        self._connections[name].add(task)
        begin, outcome = time.monotonic(), "cut"
        try:
            await super()._carry(application)
            outcome = "ended"
        finally:
            self._connections[name].discard(task)
            seconds = time.monotonic() - begin
            log.info("flow pilot=%s to=%s port=%d seconds=%.3f outcome=%s", name, host, port, seconds, outcome)
