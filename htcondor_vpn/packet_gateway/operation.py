"""What an operator sees and does of a gateway for packets: ledger, status, drain, and its end.

It is one process, which has one loop; what it shares with a gateway for streams runs within that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any

from htcondor_vpn.errors import NamespacesUnavailable, VpnError
from htcondor_vpn.gateway.operation.control import Answer, ControlSocket, reply
from htcondor_vpn.gateway.operation.ledger_link import LedgerLink
from htcondor_vpn.gateway.operation.tally import Tally
from htcondor_vpn.gateway.operation.worker import batches
from htcondor_vpn.gateway.service_manager import notify
from htcondor_vpn.gateway.serving.flows import PROGRESS_SECONDS
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.loop import Loop
from htcondor_vpn.packet_gateway.sessions import Sessions
from htcondor_vpn.settings import Settings

_TICK_SECONDS = 1.0
_LAST_PAUSE_SECONDS = 10.0

log = logging.getLogger(__name__)


async def again(start: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
    """Starts what has died again, after a pause; tries for as long as it takes, for what is open lives on meanwhile."""
    while True:
        await asyncio.sleep(pause_seconds)
        try:
            await start()
            return
        except (OSError, VpnError) as error:
            log.error("it cannot be started again yet: %s", error)
        pause_seconds = min(2 * pause_seconds, _LAST_PAUSE_SECONDS)


class Operation:
    """Of a gateway of this `kind`, from its making within a running loop to `close`; raises `VpnError`.

    `stop` is set when it is to end: by SIGTERM or SIGINT, or because it was drained.
    """

    def __init__(self, settings: Settings, kind: str) -> None:
        self.sessions = Sessions(kind)
        self.stop = asyncio.Event()
        self.draining = False
        self._kind, self._folder, self._started = kind, settings.gateway_dir, time.time()
        self._loop, self._tally = Loop(), Tally()
        self._ledger = LedgerLink(
            self._loop, self._folder, settings.gateway_ledger_keep, settings.gateway_ledger_flows
        )
        self._control: ControlSocket | None = None
        self._shut: Callable[[], Awaitable[None]] | None = None
        self._drains: set[asyncio.Future[None]] = set()
        self._turn = asyncio.Lock()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._loop.fileno(), self._loop.turn)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._begin_to_drain, None)

    def ready(self, shut: Callable[[], Awaitable[None]]) -> None:
        """Hears the operator from now on.

        `shut` is awaited before `draining` begins. After it nobody begins a session, and all that there are have been
        counted; it raises OSError or `VpnError` where that cannot be.
        """
        self._shut = shut
        self._control = ControlSocket(self._folder, self._loop, self._asked)
        notify("READY=1", "STATUS=serving")

    async def serve(
        self,
        works: Iterable[Awaitable[None]],
        besides: Sequence[asyncio.Future[None]] = (),
        last: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Does `works`, and counts, until `stop` is set; awaits `last` then, and cancels them.

        None of them ends by itself, nor of `besides`, which go on: raises the `VpnError` of one that fails, and
        `NamespacesUnavailable` when one ends, since that is of a namespace that was lost.
        """
        stopped = asyncio.ensure_future(self.stop.wait())
        tasks = [asyncio.ensure_future(work) for work in (*works, self._count_on())]
        try:
            futures: list[asyncio.Future[Any]] = [stopped, *tasks, *besides]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, *besides):
                if task.done():
                    task.result()
                    raise NamespacesUnavailable("the gateway's namespace was lost", "start it again")
            if last is not None:
                await last()
        finally:
            for future in (stopped, *tasks):
                future.cancel()
            await asyncio.gather(stopped, *tasks, return_exceptions=True)

    async def _count_on(self) -> None:
        """Counts, and writes the ledger; runs until cancelled."""
        due = time.monotonic() + PROGRESS_SECONDS
        try:
            while True:
                await asyncio.sleep(_TICK_SECONDS)
                self._loop.turn()
                progress = time.monotonic() >= due
                if progress:
                    due = time.monotonic() + PROGRESS_SECONDS
                self._count(progress=progress)
                if self.draining and not self.sessions:
                    log.info("drained")
                    self.stop.set()
        finally:
            for drain in self._drains:
                drain.cancel()
            await asyncio.gather(*self._drains, return_exceptions=True)

    def _count(self, *, progress: bool) -> None:
        flows = self.sessions.flows
        self._tally.add(os.getpid(), flows.sums())
        self._tally.tick()
        for batch in batches([*flows.ended(), *(flows.progress() if progress else ())]):
            self._ledger.tell({"records": batch})

    def close(self) -> None:
        """Ends what is counted, and waits until the ledger is written."""
        notify("STOPPING=1")
        self.sessions.end_all("gateway_ended")
        self._count(progress=False)
        if self._control is not None:
            self._control.close()
        self._ledger.close()
        asyncio.get_running_loop().remove_reader(self._loop.fileno())

    # What it is told

    def _asked(self, request: Answer, channel: Channel) -> None:
        what = request["do"]
        if what == "status":
            reply(channel, self._status())
        elif what == "drain":
            self._begin_to_drain(request.get("timeout_seconds"), lambda answer: reply(channel, answer))
        elif what == "restart":
            reply(channel, {"error": f"of the kind {self._kind} there is no restart; stop it and start it again"})

    def _begin_to_drain(self, timeout_seconds: float | None, tell: Callable[[Answer], None] = lambda _: None) -> None:
        """Begins no session, and ends when the last has ended, or after the time; `tell` gets the answer."""
        if self._shut is None:  # there is no session yet
            self.stop.set()
            return
        drain = asyncio.ensure_future(self._drain(self._shut, timeout_seconds, tell))
        self._drains.add(drain)
        drain.add_done_callback(self._drains.discard)

    async def _drain(
        self, shut: Callable[[], Awaitable[None]], timeout_seconds: float | None, tell: Callable[[Answer], None]
    ) -> None:
        async with self._turn:  # who asks while it is being shut is answered when it is
            if not self.draining and not self.stop.is_set():
                try:
                    await shut()
                except (OSError, VpnError) as error:
                    log.error("it is not drained: %s", error)
                    tell({"error": str(error)})
                    return
                log.info("draining: %d sessions go on", len(self.sessions))
                self.draining = True
                notify("STATUS=draining")
        if timeout_seconds is not None:
            asyncio.get_running_loop().call_later(timeout_seconds, self.stop.set)
        tell({"flows": len(self.sessions), "what": "sessions"})

    def _status(self) -> dict[str, Any]:
        return {
            "kind": self._kind, "version": version("htcondor-vpn"), "pid": os.getpid(), "generation": 1,
            "started": round(self._started, 3), "uptime_seconds": round(time.time() - self._started, 1),
            "draining": self.draining, "stopping": self.stop.is_set(), "ledger": self._ledger.state,
            **self._tally.total.as_json(), "flows": len(self.sessions), "workers": [],
            "pilots": {name: count.as_json() for name, count in sorted(self._tally.pilots.items())},
        }  # fmt: skip
