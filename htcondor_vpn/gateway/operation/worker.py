"""One of the processes that serve a gateway's connections: what its parent tells it, and what it tells its parent.

Both are messages over a channel, of which either side may leave out or not know some. The worker ends with its parent.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from htcondor_vpn.gateway.operation.allocation import PERIOD_SECONDS
from htcondor_vpn.gateway.operation.allowances import Allowances
from htcondor_vpn.gateway.operation.seats import Seats
from htcondor_vpn.gateway.operation.server import Gateway
from htcondor_vpn.gateway.operation.shares import Rates, Shares
from htcondor_vpn.gateway.serving.destinations import PublicPolicy
from htcondor_vpn.gateway.serving.flows import PROGRESS_SECONDS
from htcondor_vpn.gateway.serving.roster import Limits
from htcondor_vpn.gateway.serving.standing import Standing
from htcondor_vpn.gateway.trust.admission import gatekeeper
from htcondor_vpn.gateway.trust.renewal import ServerTls
from htcondor_vpn.linux.async_channel import AsyncChannel
from htcondor_vpn.linux.channel import MAX_BYTES, Channel
from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.settings import Settings

REPORT_SECONDS = 1.0
#: Reports that a parent does not take wait; beyond this they are dropped, the oldest first.
_MAX_WAITING = 4096


@dataclass(frozen=True)
class Equipment:
    """What the workers of a gateway share."""

    settings: Settings
    tls: ServerTls
    limits: Limits
    rates: Rates
    processes: int
    seats: Seats
    allowances: Allowances
    listeners: Sequence[socket.socket]


def work(equipment: Equipment, column: int, channel: Channel) -> None:
    """Serves until told to end, or until the parent is gone; raises `VpnError` if it cannot. Run in a forked child."""
    die_with_parent(signal.SIGKILL)
    asyncio.run(_serve(equipment, column, channel))


async def _serve(equipment: Equipment, column: int, channel: Channel) -> None:
    settings = equipment.settings
    with gatekeeper(settings) as keeper:
        gateway = Gateway(
            equipment.tls, keeper, PublicPolicy(settings.gateway_allow, settings.gateway_deny), equipment.limits,
            seats=equipment.seats, column=column, shares=Shares(equipment.rates, equipment.processes),
            allowances=equipment.allowances,
        )  # fmt: skip
        parent = _Parent(gateway, channel)
        parent.say({"ready": True})
        reporting = [asyncio.ensure_future(parent.report_on())]
        if equipment.rates != Rates():
            reporting.append(asyncio.ensure_future(parent.tell_needs()))
        try:
            await gateway.serve(equipment.listeners)
        finally:
            for task in reporting:
                task.cancel()
            parent.last_words()


class _Parent:
    """The worker's end of the channel."""

    def __init__(self, gateway: Gateway, channel: Channel) -> None:
        self._gateway = gateway
        self._channel = AsyncChannel(channel, self._hear, self._gone, _MAX_WAITING)
        self._memory = OwnMemory()

    def _gone(self) -> None:
        """The parent is gone, and we go."""
        self._gateway.stop()
        self._gateway.stop()

    def _hear(self, message: dict[str, Any], _: list[int]) -> None:
        if "rates" in message:
            self._gateway.roster.shares.set_rates(message["rates"])
        if "standing" in message:
            told = message["standing"]
            self._gateway.roster.told = Standing(told["flows"], told["load"], told["draining"])
        for order in ("stop", "drain", "retire"):
            if order in message:
                getattr(self._gateway, order)()

    def say(self, message: dict[str, Any]) -> None:
        """Sends a message, now or when the parent takes it again."""
        self._channel.send(message)

    async def report_on(self) -> None:
        """Reports every second; runs until cancelled."""
        due = time.monotonic() + PROGRESS_SECONDS
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            progress = time.monotonic() >= due
            if progress:
                due = time.monotonic() + PROGRESS_SECONDS
            self._report(progress=progress)

    def _report(self, *, progress: bool) -> None:
        flows = self._gateway.roster.flows
        self.say({
            "flows": len(flows), "instance": flows.instance, "forgotten": flows.forgotten,
            "cpu_seconds": time.process_time(), "memory_bytes": self._memory.bytes(),
        })  # fmt: skip
        sums = flows.sums()
        for batch in batches(sums):
            self.say({"sums": batch})
        self._gateway.roster.shares.forget_all_but({pilot for pilot, running, *_ in sums if running})
        for batch in batches([*flows.ended(), *(flows.progress() if progress else ())]):
            self.say({"records": batch})

    async def tell_needs(self) -> None:
        """Tells what the pilots need, where there are limits; runs until cancelled."""
        needed = False
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            needs = self._gateway.roster.shares.needs()
            for first, batch in enumerate(batches(needs)):
                self.say({"needs": batch, "more": first > 0})
            if needed and not needs:
                self.say({"needs": [], "more": False})
            needed = bool(needs)

    def last_words(self) -> None:
        """Tells what there is still to tell, though it take the parent a moment to hear it."""
        self._report(progress=True)
        self._channel.flush(REPORT_SECONDS)


class OwnMemory:
    """What of this process' memory is in RAM (proc(5), statm), in part shared with its parent.

    The file stays open: a report must not fail for want of a descriptor, or its process counts as stuck.
    """

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def bytes(self) -> int:
        return int(os.pread(self._statm, 256, 0).split()[1]) * mmap.PAGESIZE

    def close(self) -> None:
        os.close(self._statm)


def batches(items: Iterable[Any], max_bytes: int = MAX_BYTES - 1024) -> Iterator[list[Any]]:
    """Puts items together into lists that fit into a message each."""
    batch: list[Any] = []
    size = 0
    for item in items:
        length = len(json.dumps(item)) + 2
        if batch and size + length > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch
