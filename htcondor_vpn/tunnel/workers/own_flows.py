"""The flows that this process relays itself, and what they have carried."""

from __future__ import annotations

import socket

from htcondor_vpn.wire.relay import Traffic, relay
from htcondor_vpn.wire.stream import Stream


class OwnFlows:
    """Relays flows, and counts them."""

    def __init__(self) -> None:
        self._live: set[Traffic] = set()
        self._ended = Traffic()

    @property
    def carried(self) -> Traffic:
        """What they have carried in sum, those that have ended too."""
        return sum_of(self._ended, *self._live)

    async def relay(self, stream: Stream, application: socket.socket, early: bytes) -> None:
        """See `wire.relay`."""
        traffic = Traffic()
        self._live.add(traffic)
        try:
            await relay(stream, application, early, traffic)
        finally:
            self._live.discard(traffic)
            self._ended = sum_of(self._ended, traffic)


def sum_of(*parts: Traffic) -> Traffic:
    """What they have carried together."""
    return Traffic(sum(each.bytes_to_plain for each in parts), sum(each.bytes_from_plain for each in parts))
