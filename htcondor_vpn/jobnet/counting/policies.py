"""The policies' chains in the kernel: made for the first job that needs them, kept while there may be another."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from typing import Any, NamedTuple, Optional

from htcondor_vpn.errors import JobCountingUnavailable
from htcondor_vpn.jobnet.counting.addresses import Addresses
from htcondor_vpn.jobnet.counting.rules import policy_rules
from htcondor_vpn.jobnet.counting.table import JobTable
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.destinations import Destination, parse_destination
from htcondor_vpn.linux.netlink import NetlinkError
from htcondor_vpn.special_addresses import Network

#: How many policies without a job are kept for the next job.
_MOST_IDLE = 16

#: How often the names of policies are looked up.
REFRESH_SECONDS = 60.0

#: Allowed in place of names that have no address: an empty list would allow everything.
_NOWHERE = (Destination(IPv4Network("0.0.0.0/32")),)

log = logging.getLogger(__name__)


class Reach(NamedTuple):
    """What of a decision the rules are made of."""

    allowed: tuple[Destination, ...]
    denied: tuple[Destination, ...]
    classes: tuple[tuple[str, tuple[Destination, ...]], ...]

    @classmethod
    def of(cls, decision: Decision) -> Reach:
        return cls(decision.allowed, decision.denied, tuple(decision.classes.items()))

    @property
    def chain(self) -> str:
        """The name of its chains: the same for the same rules, whoever makes them."""
        return "p" + hashlib.sha256(json.dumps(self.message()).encode()).hexdigest()[:16]

    @property
    def named(self) -> bool:
        """Whether there are hosts' names in it."""
        return any(isinstance(destination.where, str) for _, destination in self._entries)

    def differing(self, other: Reach) -> frozenset[Network]:
        """The networks for which one of the two says something that the other does not."""
        differing = self._entries ^ other._entries
        return frozenset(each.where for _, each in differing if not isinstance(each.where, str))

    @property
    def _entries(self) -> frozenset[tuple[str, Destination]]:
        """Each destination with what is said of it."""
        classes = ((f"class {name}", some) for name, some in self.classes)
        lists = [("allowed", self.allowed), ("denied", self.denied), *classes]
        return frozenset((said, destination) for said, some in lists for destination in some)

    async def resolved(self, addresses: Addresses) -> Reach:
        """Replaces names by their addresses; of a name without any nothing is left."""
        classes = [(name, await addresses.of(some)) for name, some in self.classes]
        return Reach(await addresses.of(self.allowed, _NOWHERE), await addresses.of(self.denied), tuple(classes))

    def message(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "allowed": [str(each) for each in self.allowed],
            "denied": [str(each) for each in self.denied],
            "classes": [[name, [str(each) for each in some]] for name, some in self.classes],
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Reach:
        """Raises ValueError, TypeError or KeyError for what is no message."""
        allowed, denied = (tuple(map(parse_destination, message[part])) for part in ("allowed", "denied"))
        classes = tuple((str(name), tuple(map(parse_destination, some))) for name, some in message["classes"])
        return cls(allowed, denied, classes)


#: Is told which job networks have other rules now, and for which destinations; None is any.
Changed = Callable[[Collection[int], Optional[Collection[Network]]], Awaitable[None]]


class Policies:
    """Which chains there are, and which jobs are under them. nft runs in a thread, once for each new policy."""

    def __init__(
        self, table: JobTable, thread: ThreadPoolExecutor, changed: Changed, addresses: Addresses | None = None
    ) -> None:
        self._table, self._thread, self._addresses = table, thread, addresses or Addresses()
        self._changed = changed
        self._reaches: dict[str, Reach] = {}
        #: With names replaced by addresses: for what the chains were made.
        self._resolved: dict[str, Reach] = {}
        self._numbers: dict[str, set[int]] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Keeps the names up to date from now on."""
        self._start(self._refresh_for_ever())

    def close(self) -> None:
        """Stops to do so."""
        for task in self._background:
            task.cancel()

    async def lead(self, number: int, decision: Decision) -> str:
        """Puts job network `number` under what was decided and returns the chains' name.

        Raises `JobCountingUnavailable` or `NetlinkError`.
        """
        return await self.lead_to(number, Reach.of(decision))

    async def lead_to(self, number: int, reach: Reach) -> str:
        """The same, by what of a decision counts here."""
        chain = reach.chain
        self._numbers.setdefault(chain, set()).add(number)
        try:
            if chain not in self._reaches:
                await self._made(chain, reach)
            try:
                self._table.lead(number, chain)
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                await self._made(chain, reach)  # a former broker removed it, and died before it could say so
                self._table.lead(number, chain)
        except BaseException:
            self.leave({number})
            raise
        return chain

    async def _made(self, chain: str, reach: Reach) -> None:
        """Waits until the chain has been made, once for all who want it at the same time."""
        if chain not in self._making:
            self._making[chain] = asyncio.ensure_future(self._make(chain, reach))
        await asyncio.shield(self._making[chain])

    async def _make(self, chain: str, reach: Reach) -> None:
        try:
            await self._put_into_force(chain, await reach.resolved(self._addresses))
            self._reaches[chain] = reach
        finally:
            del self._making[chain]

    async def _put_into_force(self, chain: str, resolved: Reach) -> None:
        classes = [destinations for _, destinations in resolved.classes]
        rules = policy_rules(chain, resolved.allowed, resolved.denied, classes)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._table.run, rules)
        self._resolved[chain] = resolved

    def leave(self, numbers: Collection[int]) -> None:
        """Is told that jobs have ended; chains that nobody needed for long are removed."""
        for users in self._numbers.values():
            users.difference_update(numbers)
        idle = [chain for chain, users in self._numbers.items() if not users and chain in self._reaches]
        surplus = idle[: max(len(idle) - _MOST_IDLE, 0)]
        for chain in surplus:
            del self._reaches[chain], self._numbers[chain]
            self._resolved.pop(chain, None)
        if surplus:
            self._start(self._remove(surplus))

    async def _remove(self, chains: Collection[str]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._table.remove_policies, chains)
        except JobCountingUnavailable as error:
            log.error("chains of policies are left: %s", error.cause)

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            for chain, reach in list(self._reaches.items()):
                if reach.named and chain in self._reaches:
                    await self._refresh(chain, reach)

    async def _refresh(self, chain: str, reach: Reach) -> None:
        resolved, before = await reach.resolved(self._addresses), self._resolved.get(chain)
        if resolved == before:
            return
        try:
            await self._put_into_force(chain, resolved)
        except JobCountingUnavailable as error:
            log.error("the addresses of a policy's names stay as they were: %s", error.cause)
            return
        networks = None if before is None else resolved.differing(before)
        await self._changed(frozenset(self._numbers.get(chain, ())), networks)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("policies' names and chains are no longer kept", exc_info=task.exception())

    def messages(self) -> dict[str, Any]:
        """For a later broker, as JSON."""
        return {chain: reach.message() for chain, reach in self._reaches.items()}

    def resume(self, messages: Mapping[str, Any], numbers: Mapping[str, Collection[int]]) -> None:
        """Goes on with the chains that a former broker has made; `numbers` are the job networks under each."""
        for chain, message in messages.items():
            self._reaches[chain] = Reach.from_message(message)
            self._numbers[chain] = set(numbers.get(chain, ()))
