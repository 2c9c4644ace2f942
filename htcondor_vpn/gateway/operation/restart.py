"""A new program in the place of a gateway's parent: first it is checked that it would run, then it is executed."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

from htcondor_vpn.gateway.operation.control import reply
from htcondor_vpn.gateway.operation.inheritance import Check
from htcondor_vpn.gateway.service_manager import notify
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.loop import Loop

_START_SECONDS = 60.0

log = logging.getLogger(__name__)


class Restart:
    """Of a program that runs in `loop`.

    `execute` does not return unless it raises OSError; then `stay` is called, and it goes on as it was. `ending` says
    whether the gateway ends anyway.
    """

    def __init__(
        self, loop: Loop, ending: Callable[[], bool], execute: Callable[[], None], stay: Callable[[], None]
    ) -> None:
        self._loop, self._ending, self._execute, self._stay = loop, ending, execute, stay
        self._checking: tuple[Check, Channel | None] | None = None

    def begin(self, channel: Channel | None) -> None:
        """Executes the program anew, if its code and settings are such that it would run; else `channel` hears why."""
        if self._ending() or self._checking is not None:
            if channel is not None:
                reply(channel, {"error": "it is ending" if self._ending() else "it is at it already"})
            return
        try:
            check = Check()
        except OSError as error:
            self._fail(channel, error.strerror or str(error))
            return
        self._checking = check, channel
        self._loop.watch(check.pidfd, self._checked)

        def too_late() -> None:
            if self._checking is not None and self._checking[0] is check:
                check.kill()

        self._loop.after(_START_SECONDS, too_late)

    def _checked(self) -> None:
        assert self._checking is not None
        check, channel = self._checking
        self._checking = None
        self._loop.forget(check.pidfd)
        os.close(check.pidfd)
        code, said = check.reap()
        if code != 0:
            late = code == -signal.SIGKILL
            ends = f"it has not started within {_START_SECONDS:g} s" if late else f"it ends with code {code}"
            self._fail(channel, said or ends)
            return
        if self._ending():
            return
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._execute()
        except OSError as error:
            self._fail(channel, error.strerror or str(error))

    def _fail(self, channel: Channel | None, why: str) -> None:
        self._stay()
        notify("READY=1")
        log.error("it goes on as it was, for a new program would not start: %s", why)
        if channel is not None:
            reply(channel, {"error": why})
