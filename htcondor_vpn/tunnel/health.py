"""Watches one carrier: whether it works, from the first probe to the last.

A probe goes every few seconds. A carrier that knows by itself that it was lost is believed at once; one that falls
silent is noticed when a probe goes unanswered. Probes go by a connection that is kept, which says nothing of new ones:
who has met with something else by a new one doubts the carrier, and it is probed by a new one, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable

from htcondor_vpn.errors import GatewayUnreachable, VpnError
from htcondor_vpn.tunnel.carrier import Answer, Carrier
from htcondor_vpn.wire.deadline import Deadline, Revocable

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 3.0


class _Doubted(Exception):
    """The next probe is not waited for."""


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
        self._doubted = False
        self._waiting: set[Revocable] = set()

    def doubt(self) -> None:
        """Has the carrier probed from scratch, at once."""
        self._doubted = True
        for waiting in list(self._waiting):
            waiting.revoke()

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
                await self._pass_interval()
        except asyncio.TimeoutError as error:
            raise GatewayUnreachable(
                f"the gateway {carrier.name} does not answer within {seconds:g} s",
                "check that it runs, and that this node may connect to it",
            ) from error
        except (OSError, ssl.SSLError) as error:
            raise GatewayUnreachable(
                f"the gateway {carrier.name} was lost: {error}", "see the gateway's log; it is tried again"
            ) from error


    async def _pass_interval(self) -> None:
        """Waits until the next probe is due; raises OSError if the carrier is lost meanwhile."""
        if not self._doubted:
            doubted = Revocable(_Doubted(), self._waiting)
            with contextlib.suppress(asyncio.TimeoutError, _Doubted), Deadline(self._interval), doubted:
                await self._carrier.lost()
                raise ConnectionResetError("it ended the connection")
        if self._doubted:
            self._doubted = False
            self._carrier.forget()


def most_telling(errors: list[VpnError]) -> VpnError:
    """Of several errors the one that a user can do most about: anything rather than silence."""
    return next((error for error in errors if not isinstance(error, GatewayUnreachable)), errors[0])
