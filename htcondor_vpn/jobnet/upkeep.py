"""What is done for all jobs together, a moment after one has come or gone: it takes the kernel or a disk some time.

What all may use is divided anew, the links of those that are gone are deleted, and their books are closed.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from htcondor_vpn.jobnet.counting.books import Books
from htcondor_vpn.jobnet.lease import Leases
from htcondor_vpn.jobnet.wiring import Wiring

_REBALANCE_SECONDS = 0.05
_SETTLE_SECONDS = 0.25

log = logging.getLogger(__name__)


class Upkeep:
    """Of one broker's job networks; what blocks is done in `threads`."""

    def __init__(self, wiring: Wiring, leases: Leases, books: Books, threads: Executor) -> None:
        self._wiring, self._leases, self._books, self._threads = wiring, leases, books, threads
        self._rebalancing: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._unswept = False
        self._settling: asyncio.Task[None] | None = None
        self._unsettled = False

    def one_has_come(self) -> None:
        """Is told that a job network has been made."""
        self._rebalance_soon()

    def some_have_gone(self) -> None:
        """Is told that links have been discarded."""
        self._unswept = True
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.ensure_future(self._sweep())
        self._rebalance_soon()

    def _rebalance_soon(self) -> None:
        if self._rebalancing is None:
            self._rebalancing = asyncio.get_running_loop().call_later(_REBALANCE_SECONDS, self._rebalance)

    def _rebalance(self) -> None:
        """Divides anew what the jobs may use together, once for all that have come and gone meanwhile."""
        self._rebalancing = None
        try:
            self._wiring.rebalance()
        except OSError as error:
            log.error("the jobs' parts could not be changed: %s", error)

    async def _sweep(self) -> None:
        """Deletes discarded links, all that have come together while the kernel was busy with those before."""
        loop = asyncio.get_running_loop()
        while self._unswept:
            self._unswept = False
            await loop.run_in_executor(self._threads, self._wiring.sweep)
            self._unsettled = True
            if self._settling is None or self._settling.done():
                self._settling = asyncio.ensure_future(self._settle())

    async def _settle(self) -> None:
        """Closes the books of jobs whose links are gone, of all together that have ended within a moment."""
        while self._unsettled:
            await asyncio.sleep(_SETTLE_SECONDS)
            self._unsettled = False
            gone = {number for number in self._leases.without_lease if not self._wiring.exists(number)}
            if gone:
                await self._books.settle(gone)
            self._leases.without_lease -= gone
