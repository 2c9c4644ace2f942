"""The books of a pilot's jobs: an account and a flight recorder for each, from what the kernel counts.

What is known now is in `jobs.json` (jobs_file.py); the ledger has what is to be kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from htcondor_vpn.addresses import FIRST_INDEX
from htcondor_vpn.errors import JobCountingUnavailable
from htcondor_vpn.jobnet.counting.account import Account
from htcondor_vpn.jobnet.counting.answers import told
from htcondor_vpn.jobnet.counting.jobs_file import JobsFile
from htcondor_vpn.jobnet.counting.ledger import Ledger, Row, ledger_path, row
from htcondor_vpn.jobnet.counting.policies import Policies, Reach
from htcondor_vpn.jobnet.counting.recorder import Recorder
from htcondor_vpn.jobnet.counting.rules import LOG_GROUP, MOST_FLOWS
from htcondor_vpn.jobnet.counting.table import Flow, JobTable, Moved, nft_thread
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.wiring import Totals
from htcondor_vpn.linux.netlink import NetlinkError
from htcondor_vpn.linux.packet_log import PacketLog
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.special_addresses import Network

#: How often the kernel's counters are read: peak rates are means over this time.
SAMPLE_SECONDS = 5.0

#: How often the ledger learns how running jobs are; it may lie on a shared file system.
_LEDGER_SECONDS = 60.0

#: How long the end of a pilot waits for the ledger.
_CLOSE_SECONDS = 5.0

#: How soon jobs.json has what is new.
_LIVE_SECONDS = 0.1

#: Of one job, or of all, so many flows may lie in the kernel before those that are silent are taken out of it.
_MANY_FLOWS = 1000
_TOO_MANY_FLOWS = MOST_FLOWS // 2

#: No job may have more than so many there: beyond, those that are not silent are taken out as well.
_MOST_OF_ONE = MOST_FLOWS // 16

#: So many flows are taken out before others have their turn.
_FORGOTTEN_AT_ONCE = 200

#: What the ledger keeps of a flight recorder.
_IN_SHORT = 20

#: A file of another broker's that is none, or of another version.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)

_PACKET_BYTES = 1500
_PACKETS_AT_ONCE = 64

log = logging.getLogger(__name__)


class Books:
    """`totals` reads a job network's link, `resent` its namespace's counter of segments that were sent again; both may
    raise OSError when it has gone.
    """

    def __init__(
        self,
        run_dir: Path,
        ledger_folder: Path | None,
        totals: Callable[[int], Totals],
        resent: Callable[[int], int | None],
    ) -> None:
        nft = find_program("nft", "nftables")
        self._file = JobsFile(run_dir)
        self._ledger_path = ledger_path(ledger_folder, run_dir)
        self._totals, self._resent = totals, resent
        self._table = JobTable(nft)
        self._reader = JobTable(nft)  # of the thread `reading`
        self._reading = ThreadPoolExecutor(1, "flows")
        self._writing = ThreadPoolExecutor(1, "ledger")
        self._nft = nft_thread()
        self._policies = Policies(self._table, self._nft, self._take_out_those_to)
        self._ledger: Ledger | None = None
        self._accounts: dict[int, Account] = {}
        self._recorders: dict[int, Recorder] = {}
        #: What jobs.json has of each job, as JSON, until something of it changes.
        self._entries: dict[int, str] = {}
        self._log: PacketLog | None = None
        self._seeing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._live_soon: asyncio.TimerHandle | None = None

    # Beginning and end

    def open(self, numbers: Collection[int]) -> None:
        """Makes the kernel's table or finds it, and the books of `numbers`, whose links another broker has left.

        Raises `JobCountingUnavailable` and OSError.
        """
        if self._nft.submit(self._table.open).result():
            self._resume(numbers)
        elif numbers:
            self._begin_anew(numbers)
        self._listen()
        self._table.forget(self._table.known() - set(numbers))
        self._write_live()
        self._policies.open()
        self._start(self._open_ledger())
        self._start(self._sample_for_ever())

    def close(self) -> None:
        """Writes what there is to write; the kernel's table stays."""
        for task in self._tasks:
            task.cancel()
        now = time.time()
        for account in self._accounts.values():
            if account.ended is None:
                account.ended, account.outcome = now, "pilot ended"
        self._entries.clear()
        self._write_live()
        rows = [self._row(number) for number in self._accounts]
        wait([self._writing.submit(self._write_ledger, rows)], _CLOSE_SECONDS)
        self._policies.close()

    def _listen(self) -> None:
        try:
            self._log = PacketLog(LOG_GROUP, _PACKET_BYTES)
        except OSError as error:
            log.warning("flight recorders have no names, since packets cannot be shown: %s", error)
        else:
            asyncio.get_running_loop().add_reader(self._log.fileno(), self._hear, self._log)

    def _hear(self, packets: PacketLog) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            try:
                received = packets.receive()
            except BlockingIOError:
                return
            for packet in received:
                recorder = self._recorders.get((packet.interface - FIRST_INDEX) // 2)
                if recorder is not None and (said := told(packet.payload)) is not None:
                    recorder.heard(said, time.time())

    def _resume(self, numbers: Collection[int]) -> None:
        try:
            live = self._file.read()
            by_policy = self._read_books(live, numbers)
            self._policies.resume(live["policies"], by_policy)
        except FileNotFoundError:
            return
        except _UNREADABLE as error:
            log.error("the books of the broker before cannot be read: %s", error)

    def _read_books(self, live: Mapping[str, Any], numbers: Collection[int]) -> dict[str, set[int]]:
        """Takes the books of `numbers` over, and returns which are under each policy; raises `_UNREADABLE`."""
        by_policy: dict[str, set[int]] = {}
        for each in live["jobs"]:
            account = Account.of(each["account"])
            if account.number in numbers and account.ended is None:
                self._accounts[account.number] = account
                self._recorders[account.number] = Recorder.of(each["flights"], account.class_names)
                by_policy.setdefault(account.policy, set()).add(account.number)
        return by_policy

    def _begin_anew(self, numbers: Collection[int]) -> None:
        """The table of the broker before was of another version: its jobs come under new rules, and go on counting.

        Their links have counted on. Of their classes what it wrote down last is known, and for the moment nothing of
        theirs passes, since the new table does not know their links yet.
        """
        try:
            live = self._file.read()
            by_policy = self._read_books(live, numbers)
            reaches = {chain: Reach.from_message(live["policies"][chain]) for chain in by_policy}
        except (*_UNREADABLE, FileNotFoundError) as error:
            log.error("jobs that another version's broker has left lose their network: its books: %s", error)
            return
        for number, account in self._accounts.items():
            account.settled = dict(account.classes)
            self._recorders[number].kernel_forgot()
        self._start(self._lead_again([(each, reaches[chain]) for chain, some in by_policy.items() for each in some]))

    async def _lead_again(self, jobs: Collection[tuple[int, Reach]]) -> None:
        for number, reach in jobs:
            try:
                await self._policies.lead_to(number, reach)
            except (JobCountingUnavailable, NetlinkError) as error:
                log.error("job network %d cannot be kept to its policy any more: %s", number, error)

    # A job

    async def begin(self, number: int, decision: Decision, job: str, slot: str) -> None:
        """Puts job network `number` under what was decided, and opens its account; its link must not exist yet.

        Raises `JobCountingUnavailable` or `NetlinkError`.
        """
        policy = await self._policies.lead(number, decision)
        names = tuple(decision.classes)
        self._accounts[number] = Account(
            number, job, slot, rule=decision.rule, recorded=decision.recorded, class_names=names, policy=policy
        )
        self._recorders[number] = Recorder(names)
        self._entries.pop(number, None)
        self._write_live_soon()

    def account(self, number: int) -> Account:
        """The account as it is now; raises OSError when the link is gone."""
        account = self._accounts.setdefault(number, Account(number))
        self._sample(account, self._table.moved_by(number, len(account.class_names)))
        return account

    def finish(self, number: int, outcome: str) -> Account:
        """Closes the account at its present state; raises OSError when the link is gone."""
        account = self.account(number)
        account.finish(outcome)
        self._write_live_soon()
        return account

    async def flights(self, number: int) -> dict[str, Any]:
        """The whole message of a job's flight recorder, by now."""
        await self._see({number})
        return self._flights(number)

    def _flights(self, number: int, most: int | None = None) -> dict[str, Any]:
        recorder = self._recorder(number)
        return recorder.message() if most is None else recorder.message(most)

    def _recorder(self, number: int) -> Recorder:
        return self._recorders.get(number) or Recorder(())

    async def settle(self, numbers: Collection[int]) -> None:
        """Is told that the links of these job networks are gone: nothing is counted for them any more."""
        await self._see(numbers)
        rows = []
        for number in numbers:
            if (account := self._accounts.get(number)) is not None:
                if account.ended is None:
                    account.ended, account.outcome = time.time(), "lost"
                rows.append(self._row(number))
                del self._accounts[number]
            self._recorders.pop(number, None)
            self._entries.pop(number, None)
        self._writing.submit(self._write_ledger, rows)
        await asyncio.get_running_loop().run_in_executor(self._reading, self._reader.forget, numbers)
        self._policies.leave(numbers)
        self._write_live_soon()

    # Samples

    async def _sample_for_ever(self) -> None:
        written = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            if not self._accounts:
                continue
            await self._see(sample=True)
            self._entries.clear()
            for number in list(self._accounts):
                if number in self._accounts:
                    self._entry(number)
                await asyncio.sleep(0)
            self._write_live()
            if time.monotonic() - written >= _LEDGER_SECONDS:
                written = time.monotonic()
                rows = [self._row(number) for number in self._accounts]
                self._writing.submit(self._write_ledger, rows)

    def _sample(self, account: Account, moved: Mapping[int, Moved]) -> None:
        account.sample(self._totals(account.number), moved, time.monotonic())
        account.resent_segments = self._resent(account.number)
        self._entries.pop(account.number, None)

    async def _see(self, numbers: Collection[int] | None = None, *, sample: bool = False) -> None:
        """Feeds the recorders, or those of `numbers`, and takes silent flows out of the kernel where there are many.

        With `sample` the accounts get what was read, too.
        """
        loop = asyncio.get_running_loop()
        async with self._seeing:
            found = await loop.run_in_executor(self._reading, self._reader.flows, numbers)
            for number, moved in (await loop.run_in_executor(self._reading, self._reader.unlisted)).items():
                if (recorder := self._recorders.get(number)) is not None:
                    recorder.unlisted = moved
            if sample:
                await self._sample_all(await loop.run_in_executor(self._reading, self._reader.moved, found))
            now, crowded = time.time(), sum(map(len, found.values())) > _TOO_MANY_FLOWS
            for number, flows in found.items():
                if (recorder := self._recorders.get(number)) is None:
                    continue
                silent = recorder.see(flows, now)
                if len(flows) > _MOST_OF_ONE:
                    await self._take_out(number, recorder, flows)
                elif silent and (crowded or len(flows) > _MANY_FLOWS):
                    await self._take_out(number, recorder, silent)
                await asyncio.sleep(0)

    async def _sample_all(self, moved: Mapping[int, Mapping[int, Moved]]) -> None:
        for account in list(self._accounts.values()):
            if account.ended is None:
                try:
                    self._sample(account, moved.get(account.number, {}))
                except OSError as error:
                    log.debug("job network %d is not there: %s", account.number, error)
                await asyncio.sleep(0)  # nobody waits for more than one

    async def _take_out_those_to(self, numbers: Collection[int], networks: Collection[Network] | None) -> None:
        """Has the flows of these jobs to these networks, or to any, meet the rules again, for these have changed."""
        loop = asyncio.get_running_loop()
        async with self._seeing:
            found = await loop.run_in_executor(self._reading, self._reader.flows, numbers)
            for number, flows in found.items():
                if (recorder := self._recorders.get(number)) is not None:
                    recorder.see(flows, time.time())
                    to_them = {
                        flow: moved
                        for flow, moved in flows.items()
                        if networks is None or any(flow.peer.address in network for network in networks)
                    }
                    log.debug("job network %d: %d flows meet changed rules", number, len(to_them))
                    await self._take_out(number, recorder, to_them)

    async def _take_out(self, number: int, recorder: Recorder, flows: Mapping[Flow, Moved]) -> None:
        """Whoever reads a job's counts finds each flow either in the kernel or settled, so that is one step."""
        each = list(flows.items())
        for start in range(0, len(each), _FORGOTTEN_AT_ONCE):
            some = dict(each[start : start + _FORGOTTEN_AT_ONCE])
            self._table.forget_flows(number, some)
            recorder.settle(some)
            if (account := self._accounts.get(number)) is not None:
                account.settle(some)
            await asyncio.sleep(0)
        self._entries.pop(number, None)
        self._write_live_soon()

    # What is written

    def _write_live_soon(self) -> None:
        if self._live_soon is None:
            self._live_soon = asyncio.get_running_loop().call_later(_LIVE_SECONDS, self._write_live)

    def _write_live(self) -> None:
        self._live_soon = None
        self._file.write(self._policies.messages(), map(self._entry, self._accounts))

    def _entry(self, number: int) -> str:
        """A job in jobs.json, made anew when it has changed: for all of a node's jobs that takes longest here."""
        if number not in self._entries:
            message = {"account": self._accounts[number].message(), "flights": self._recorder(number).state()}
            self._entries[number] = json.dumps(message)
        return self._entries[number]

    async def _open_ledger(self) -> None:
        running = [(account.started, account.number) for account in self._accounts.values()]
        await asyncio.wrap_future(self._writing.submit(self._begin_ledger, running))

    def _begin_ledger(self, running: Collection[tuple[float, int]]) -> None:
        try:
            self._ledger = Ledger(self._ledger_path)
            self._ledger.end_unknown(running)
        except (OSError, sqlite3.Error) as error:
            log.error("there is no ledger of jobs: %s: %s", self._ledger_path, error)

    def _row(self, number: int) -> Row:
        return row(self._accounts[number], self._flights(number, _IN_SHORT))

    def _write_ledger(self, rows: Sequence[Row]) -> None:
        """In the thread `writing`; a job that cannot be written is told in the log."""
        if self._ledger is None or not rows:
            return
        try:
            self._ledger.write(rows)
        except (OSError, sqlite3.Error) as error:
            log.error("%d jobs are not in the ledger: %s", len(rows), error)

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the books are no longer kept", exc_info=task.exception())
