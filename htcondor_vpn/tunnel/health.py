"""Watches one carrier: whether it works, from the first probe to the last.

A probe goes every few seconds. A carrier that knows by itself that it was lost is believed at once; one that falls
silent is noticed when a probe goes unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Answer, Carrier
from htcondor_vpn.wire.deadline import Deadline

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 3.0


class HealthMonitor:
    """Runs until cancelled; calls `changed` after every probe, with what it found or with what is wrong."""

    def __init__(
        self,
        carrier: Carrier,
        interval_seconds: float,
        timeout_seconds: float,
        changed: Callable[[Answer | VpnError], None],
    ) -> None:
        self._carrier = carrier
        self._interval, self._timeout = interval_seconds, timeout_seconds
        self._changed = changed

    async def run(self) -> None:
        self._pause = FIRST_RETRY_SECONDS
        try:
            while True:
                try:
                    await self._watch()
                except VpnError as error:
                    self._carrier.forget()
                    self._changed(error)
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, LAST_RETRY_SECONDS)
        finally:
            self._carrier.forget()

    async def _watch(self) -> None:
        """Probes until the first bad one; raises VpnError."""
        carrier = self._carrier
        seconds = max(self._timeout, carrier.start_seconds)
        try:
            while True:
                with Deadline(seconds):
                    answer = await carrier.probe()
                seconds = self._timeout
                self._changed(answer)
                self._pause = FIRST_RETRY_SECONDS
                with contextlib.suppress(asyncio.TimeoutError), Deadline(self._interval):
                    await carrier.lost()
                    raise ConnectionResetError("it ended the connection")
        except asyncio.TimeoutError as error:
            raise GatewayUnreachable(
                f"the gateway {carrier.name} does not answer within {seconds:g} s",
                "check that it runs, and that this node may connect to it",
            ) from error
        except (OSError, ssl.SSLError) as error:
            raise GatewayUnreachable(
                f"the gateway {carrier.name} was lost: {error}", "see the gateway's log; it is tried again"
            ) from error


def most_telling(errors: list[VpnError]) -> VpnError:
    """Of several errors the one that a user can do most about: anything rather than silence."""
    return next((error for error in errors if not isinstance(error, GatewayUnreachable)), errors[0])
