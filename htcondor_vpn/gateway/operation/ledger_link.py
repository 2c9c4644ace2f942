"""The parent's link to the process that writes the ledger: it never waits for it, and starts it again if it dies.

One that is stopped is made to go on, since it has what is not written yet; one that stays stuck is killed.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from collections import deque
from pathlib import Path
from typing import Any

from htcondor_vpn.gateway.operation.ledger_process import keep_ledger
from htcondor_vpn.linux.children import Child, fork_child
from htcondor_vpn.linux.heartbeat import BEAT_SECONDS, Heartbeat
from htcondor_vpn.linux.loop import Loop

log = logging.getLogger(__name__)

#: Messages, of up to 64 KiB each.
_MAX_WAITING = 256
_RETRY_SECONDS = 1.0
_END_SECONDS = 5.0
#: To sort out a million old rows on a slow disk is no reason to be killed.
_CONTINUE_LOOKS, _MOST_LOOKS = 10, 120


class LedgerLink:
    """Without bounds (`keep_seconds` or `keep_flows` is 0) there is no ledger, and what is told is dropped."""

    def __init__(self, loop: Loop, folder: Path, keep_seconds: float, keep_flows: int) -> None:
        self._loop, self._folder, self._bounds = loop, folder, (keep_seconds, keep_flows)
        self._child: Child | None = None
        self._waiting: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._retrying = False
        self._told: dict[str, Any] = {}
        self._heartbeat = Heartbeat("ledger's process", _CONTINUE_LOOKS, _MOST_LOOKS)
        self.reopen()
        if all(self._bounds):
            loop.after(BEAT_SECONDS, self._look)

    @property
    def state(self) -> dict[str, Any] | None:
        """What the process said of itself last, and None where there is no ledger."""
        if not all(self._bounds):
            return None
        known = {"waiting": 0, "lost": 0, "error": "" if self._child else "its process is not there", **self._told}
        known["lost"] += self._dropped
        if self._heartbeat.silent_looks >= _CONTINUE_LOOKS:
            known["error"] = "its process does not answer"
        return known

    def tell(self, message: dict[str, Any]) -> None:
        """Hands on a message (see `Keeper.take`), now or later."""
        if not all(self._bounds):
            return
        self._waiting.append(message)
        if len(self._waiting) > _MAX_WAITING:
            self._dropped += len(self._waiting.popleft().get("records", ()))
        self._flush()

    def close(self) -> None:
        """Has what was told written, as far as that is possible within some seconds; hears nothing else meanwhile."""
        self._ending = True
        if self._child is None:
            return
        os.kill(self._child.pid, signal.SIGCONT)  # should it be stopped
        self._child.channel.sock.settimeout(_END_SECONDS)
        try:
            while self._waiting:
                self._child.channel.send(self._waiting.popleft())
            self._child.channel.finish()
        except OSError as error:
            log.error("the ledger lacks the last flows: %s", error)
        poller = select.poll()  # what the loop heard now could be told to nobody any more
        poller.register(self._child.pidfd, select.POLLIN)
        if poller.poll(_END_SECONDS * 1e3):
            self._ended()

    def reopen(self) -> None:
        """Takes a `close` back."""
        self._ending = False
        if self._child is None and all(self._bounds):
            self._start()

    def _start(self) -> None:
        try:
            child = fork_child("ledger", lambda channel: keep_ledger(self._folder, *self._bounds, channel), ())
        except OSError as error:
            log.error("the ledger's process cannot be started: %s", error.strerror)
            self._loop.after(_RETRY_SECONDS, self._start)
            return
        child.channel.sock.setblocking(False)
        self._child = child
        self._heartbeat.heard()
        self._loop.watch(child.channel, self._heard)
        self._loop.watch(child.pidfd, self._ended)
        self._flush()

    def _look(self) -> None:
        if self._child is not None:
            self._heartbeat.look(self._child.pid)
        self._loop.after(BEAT_SECONDS, self._look)

    def _flush(self) -> None:
        if self._child is None:
            return
        try:
            while self._waiting:
                self._child.channel.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            if not self._retrying:
                self._retrying = True
                self._loop.after(_RETRY_SECONDS, self._again)
        except OSError:
            return  # it has ended, and another one gets it

    def _again(self) -> None:
        self._retrying = False
        self._flush()

    def _heard(self) -> None:
        assert self._child is not None
        try:
            received = self._child.channel.receive()
        except BlockingIOError:
            return
        if received is None:
            self._loop.forget(self._child.channel)
        else:
            self._told = received[0].get("ledger", self._told)
            self._heartbeat.heard()

    def _ended(self) -> None:
        assert self._child is not None
        self._loop.forget(self._child.channel)
        self._loop.forget(self._child.pidfd)
        self._child.reap()
        self._child = None
        if not self._ending:
            log.error("the ledger's process ended; it is started again")
            self._loop.after(_RETRY_SECONDS, self._start)
