"""Echo requests (ping) on a pilot's behalf: to where it may connect to, and no more of them than a person would send.

A pilot has an allowance of its own, so that a gateway cannot be made to scan networks or to flood a host.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from htcondor_vpn.gateway.serving.connector import Connector
from htcondor_vpn.special_addresses import Address
from htcondor_vpn.wire.unreachable import Unreachable

#: How many packets one pilot may send at once, and each second from then on; a long request is several (fragments).
BURST = 100
PER_SECOND = 50.0
PACKET_BYTES = 1400

#: How many may be unanswered in all.
MAX_UNANSWERED = 500

#: Allowances that are kept. One that is full again need not be.
_KEPT = 10_000

log = logging.getLogger(__name__)


@dataclass
class _Allowance:
    left: float
    since: float


class Echoes:
    """Sends echo requests where `connector` may connect to."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._allowances: dict[str, _Allowance] = {}
        self._unanswered = 0

    async def ask(self, pilot: str, address: Address, payload: bytes) -> bytes:
        """Returns what `address` sent back; raises `Unreachable`."""
        began, outcome = time.monotonic(), "cut"
        try:
            self._take(pilot, 1 + len(payload) // PACKET_BYTES, began)
            self._unanswered += 1
            try:
                answer = await self._connector.ping(address, payload)
            finally:
                self._unanswered -= 1
            outcome = "answered"
            return answer
        except Unreachable as error:
            outcome = error.error
            raise
        finally:
            seconds = time.monotonic() - began
            log.info("echo pilot=%s to=%s bytes=%d seconds=%.3f outcome=%s", pilot, address, len(payload), seconds,
                     outcome)  # fmt: skip

    def _take(self, pilot: str, packets: int, now: float) -> None:
        if self._unanswered >= MAX_UNANSWERED:
            raise Unreachable(503, "connection_limit_reached", "too many echo requests are unanswered")
        allowance = self._allowances.get(pilot)
        if allowance is None:
            if len(self._allowances) >= _KEPT:
                self._forget(now)
            allowance = self._allowances[pilot] = _Allowance(BURST, now)
        allowance.left = min(BURST, allowance.left + (now - allowance.since) * PER_SECOND)
        allowance.since = now
        if allowance.left < packets:
            raise Unreachable(429, "connection_limit_reached", "too many echo requests of this pilot")
        allowance.left -= packets

    def _forget(self, now: float) -> None:
        full_seconds = BURST / PER_SECOND
        self._allowances = {
            pilot: allowance for pilot, allowance in self._allowances.items() if now - allowance.since < full_seconds
        }
