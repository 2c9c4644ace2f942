"""Echo requests (ping) on a pilot's behalf: to where it may connect to, and no more of them than a person would send.

A pilot has an allowance of its own, over all processes of the gateway, so that a gateway cannot be made to scan
networks or to flood a host.
"""

from __future__ import annotations

import logging
import time

from htcondor_vpn.gateway.operation.allowances import Allowances
from htcondor_vpn.gateway.operation.seats import Seats
from htcondor_vpn.gateway.serving.connector import Connector
from htcondor_vpn.special_addresses import Address
from htcondor_vpn.wire.unreachable import Unreachable

#: How many packets one pilot may send at once, and each second from then on; a long request is several (fragments).
BURST = 100
PER_SECOND = 50.0
PACKET_BYTES = 1400

#: How many may be unanswered in all, and of one pilot.
MAX_UNANSWERED, MAX_OF_ONE = 500, 128

#: Under which name they are counted; no pilot's can be that.
_UNANSWERED = "\0unanswered echo requests"

log = logging.getLogger(__name__)


class Echoes:
    """Sends echo requests where `connector` may connect to.

    `allowances` and `seats` are those of all processes of the gateway, of which this one has `column`.
    """

    def __init__(self, connector: Connector, allowances: Allowances, seats: Seats, column: int = 0) -> None:
        self._connector, self._allowances = connector, allowances
        self._seats, self._column = seats, column

    async def ask(self, pilot: str, address: Address, payload: bytes) -> bytes:
        """Returns what `address` sent back; raises `Unreachable`."""
        began, outcome = time.monotonic(), "cut"
        try:
            if not self._allowances.take(pilot, 1 + len(payload) // PACKET_BYTES, began, BURST, PER_SECOND):
                raise Unreachable(429, "connection_limit_reached", "too many echo requests of this pilot")
            of_pilot = f"{_UNANSWERED} of {pilot}"
            if not self._seats.bind(self._column, of_pilot, MAX_OF_ONE):
                raise Unreachable(429, "connection_limit_reached", "too many of this pilot are unanswered")
            try:
                answer = await self._answered(address, payload)
            finally:
                self._seats.unbind(self._column, of_pilot)
            outcome = "answered"
            return answer
        except Unreachable as error:
            outcome = error.error
            raise
        finally:
            seconds = time.monotonic() - began
            log.info("echo pilot=%s to=%s bytes=%d seconds=%.3f outcome=%s", pilot, address, len(payload), seconds,
                     outcome)  # fmt: skip

    async def _answered(self, address: Address, payload: bytes) -> bytes:
        if not self._seats.bind(self._column, _UNANSWERED, MAX_UNANSWERED):
            raise Unreachable(503, "connection_limit_reached", "too many echo requests are unanswered")
        try:
            return await self._connector.ping(address, payload)
        finally:
            self._seats.unbind(self._column, _UNANSWERED)
