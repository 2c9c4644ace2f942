"""The process that writes the ledger, so that nothing waits for a disk: not a flow, and not the gateway's parent.

What cannot be written now (a full disk, a locked file) waits in memory, up to a bound; what is too much is dropped and
counted. A file that is no ledger is put aside, and a new one begun.
"""

from __future__ import annotations

import logging
import select
import sqlite3
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from htcondor_vpn.gateway.operation.ledger import FILE, Ledger
from htcondor_vpn.gateway.serving.flows import Record
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.heartbeat import BEAT_SECONDS

log = logging.getLogger(__name__)

_WRITE_SECONDS = 1.0
_RETRY_SECONDS = 3.0
_PRUNE_SECONDS = 600.0
_MAX_WAITING = 100_000
_BATCH = 5_000


def keep_ledger(folder: Path, keep_seconds: float, keep_flows: int, channel: Channel) -> None:
    """Writes what comes over `channel` until that ends. Run in a forked child."""
    keeper = Keeper(folder, keep_seconds, keep_flows)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    tell_due = 0.0
    while True:
        now = time.monotonic()
        if now >= keeper.due:
            keeper.write()
        if now >= tell_due:  # though nothing has changed: it also says that this process lives
            tell_due = now + BEAT_SECONDS
            with suppress(BrokenPipeError):  # the end is seen below, when all is written
                channel.send({"ledger": keeper.state()})
        if poll.poll(_WRITE_SECONDS * 1000):
            received = channel.receive()
            if received is None:
                keeper.write()
                if lacking := keeper.state()["waiting"]:
                    log.error("the ledger lacks %d flows, for it could not be written to the end", lacking)
                return
            keeper.take(received[0])


class Keeper:
    """What waits to be written, and the file once it can be opened. `due` is when to write next."""

    def __init__(self, folder: Path, keep_seconds: float, keep_flows: int) -> None:
        self._folder, self._bounds = folder, (keep_seconds, keep_flows)
        self._ledger: Ledger | None = None
        self._waiting: deque[Record] = deque()
        self._ends: list[tuple[str, int | None]] = [("gateway_lost", None)]  # what an earlier gateway left open
        self._prune_due = self.due = 0.0
        self._lost, self._error = 0, ""

    def take(self, message: dict[str, Any]) -> None:
        """Takes records, or word of a process that is gone; other words are passed over."""
        self._waiting.extend(Record(*record[: len(Record._fields)]) for record in message.get("records", ()))
        if "gone" in message:
            self._ends.append(("worker_lost", message["gone"]))
        self._lost += message.get("lost", 0)
        while len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1

    def state(self) -> dict[str, Any]:
        """What waits, what was lost, and what is wrong, if anything is."""
        return {"waiting": len(self._waiting), "lost": self._lost, "error": self._error}

    def write(self) -> None:
        """Writes what waits, or tries to; never raises for what the disk does."""
        try:
            self._write()
        except sqlite3.OperationalError as error:  # locked, full, closed to us: the file is all right
            self._failed(str(error))
        except OSError as error:
            self._failed(error.strerror or str(error))
        except sqlite3.DatabaseError as error:
            self._put_aside(str(error))
        else:
            if self._error:
                log.info("the ledger is written again")
            self._error = ""
            self.due = time.monotonic() + _WRITE_SECONDS

    def _write(self) -> None:
        if self._ledger is None:
            self._ledger = Ledger(self._folder, *self._bounds)
        while self._ends:
            if self._ends[0][1] is not None and self._waiting:
                self._write_waiting()  # its last words come before its end
            self._ledger.end(*self._ends[0])
            self._ends.pop(0)
        self._write_waiting()
        if time.monotonic() >= self._prune_due:
            self._ledger.prune()
            self._prune_due = time.monotonic() + _PRUNE_SECONDS

    def _write_waiting(self) -> None:
        assert self._ledger is not None
        while self._waiting:
            batch = [self._waiting[index] for index in range(min(_BATCH, len(self._waiting)))]
            self._ledger.write(batch)
            for _ in batch:
                self._waiting.popleft()

    def _failed(self, why: str) -> None:
        if why != self._error:
            log.error("the ledger cannot be written (flows go on, and wait in memory to be written): %s", why)
        self._error = why
        self._close()
        self.due = time.monotonic() + _RETRY_SECONDS

    def _put_aside(self, why: str) -> None:
        self._close()
        path = self._folder / FILE
        aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        log.error("%s is broken (%s) and put aside as %s; a new ledger begins", path, why, aside.name)
        self._error = why
        try:
            path.rename(aside)
            for tail in ("-wal", "-shm"):
                path.with_name(path.name + tail).unlink(missing_ok=True)
        except OSError as error:
            self._failed(error.strerror or str(error))
            return
        self.due = 0.0

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
