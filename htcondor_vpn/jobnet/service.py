"""What the broker does for the wrapper and the hooks: it starts, keeps and ends job networks."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from htcondor_vpn.condor.chirp import ChirpError, literal
from htcondor_vpn.errors import JobCountingUnavailable
from htcondor_vpn.jobnet.abandoned import abandoned
from htcondor_vpn.jobnet.accounting import publish
from htcondor_vpn.jobnet.admission import NotAllowed
from htcondor_vpn.jobnet.chirp_relay import ChirpRelay
from htcondor_vpn.jobnet.confinement import confined
from htcondor_vpn.jobnet.counting.account import Account
from htcondor_vpn.jobnet.counting.books import Books
from htcondor_vpn.jobnet.counting.table import JobTable
from htcondor_vpn.jobnet.decisions import Decisions, job_name, read_machine_ad
from htcondor_vpn.jobnet.failed_jobs import FailedJobs
from htcondor_vpn.jobnet.grace import Grace
from htcondor_vpn.jobnet.lease import Lease, Leases
from htcondor_vpn.jobnet.lease_making import make_lease, number_in
from htcondor_vpn.jobnet.name_relay import NameRelay
from htcondor_vpn.jobnet.place import Place
from htcondor_vpn.jobnet.policy.decision import NONE
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.jobnet.protocol import Connection, Message, ProtocolError
from htcondor_vpn.jobnet.upkeep import Upkeep
from htcondor_vpn.jobnet.wiring import Totals, Wiring
from htcondor_vpn.linux import ancestry
from htcondor_vpn.linux.netlink import NetlinkError
from htcondor_vpn.linux.peers import Peer
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.linux.tcp_counts import resent_segments
from htcondor_vpn.settings import Settings

log = logging.getLogger(__name__)

#: How long a living wrapper may be without a connection, and the links of a former broker without a wrapper.
GRACE_SECONDS = 10.0
_ANSWER_SECONDS = 5.0


class JobNetworks:
    """The job networks of one broker, which serves at `place`."""

    def __init__(
        self,
        settings: Settings,
        run_dir: Path,
        place: Place,
        decisions: Decisions,
        on_count: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._decisions = decisions
        self._place = place
        self._on_count = on_count
        self._wiring = Wiring(
            settings.jobs_up_mbps or settings.up_mbps, settings.jobs_down_mbps or settings.down_mbps,
            mtu=place.mtu, end_here=place.end_here,
        )  # fmt: skip
        self._leases = Leases()
        self._books = Books(run_dir, settings.job_ledger_dir, self._wiring.totals, self._resent)
        self._threads = ThreadPoolExecutor(2, "jobnet")
        self._upkeep = Upkeep(self._wiring, self._leases, self._books, self._threads)
        self._failed = FailedJobs()
        self._background: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Finds what a former broker has left; what no wrapper claims within `GRACE_SECONDS` is removed.

        Raises OSError and `JobCountingUnavailable`.
        """
        left = self._wiring.open()
        self._upkeep.one_has_come()
        self._books.open(left)
        if left:
            log.info("job networks %s were left by another broker", sorted(left))
            self._leases.without_lease |= left
            Grace(GRACE_SECONDS, partial(self._discard_unclaimed, left))

    def close(self) -> None:
        """Closes the books: the pilot ends."""
        self._books.close()

    def end_all(self) -> None:
        """Takes every job's network away, those that a former broker has left included.

        Raises `NetlinkError` and `JobCountingUnavailable`.
        """
        self._wiring.close()
        JobTable(find_program("nft", "nftables")).remove()

    # What hooks ask for

    async def prepare(self, connection: Connection, peer: Peer, message: Message) -> None:
        """Answers a PREPARE_JOB_BEFORE_TRANSFER hook: nothing, or why the job is held or goes back to the queue."""
        self._place.require_condor(peer)
        text = ""
        try:
            machine_ad = read_machine_ad(peer, message.fields.get("machine", ""))
            decision = await self._decisions.prepare(peer.parent_pid, message.text, machine_ad)
            self._place.require_network(decision)
            text = confined(message.text)
            if (reason := self._failed.forget(job_name(message.text))) is not None:
                raise Refusal(SubCode.NOT_EXECUTABLE, reason)
        except Refusal as refusal:
            log.info("a job was refused with code %d: %s", refusal.sub_code, refusal.message)
            text = f"HookStatusCode = {int(refusal.sub_code)}\nHookStatusMessage = {literal(refusal.message)}\n"
        await _send(connection, Message("ok", {}, text))

    async def update(self, connection: Connection, peer: Peer, message: Message) -> None:
        """Answers an UPDATE_JOB_INFO hook: the totals so far go into the job ad."""
        self._place.require_condor(peer)
        lease = self._leases.of_starter(peer.parent_pid)
        if lease is not None:
            await self._publish(lease, self._books.account(lease.number))
        await _send(connection, Message("ok"))

    # What the wrapper asks for

    async def start(self, connection: Connection, peer: Peer, message: Message) -> None:
        """Wires a new job network and keeps it as long as the connection, the wrapper and the starter live."""
        (namespace,) = connection.take_descriptors(1)
        try:
            self._place.require_wrapper(peer, namespace)
            if self._leases.of_network(ancestry.identity(namespace)) is not None:
                raise NotAllowed("this network namespace has its network already")
            job, decision = await self._decisions.at_start(peer.parent_pid, message.text)
            families, besides = self._place.reach(decision)
            number = self._leases.free_number(self._place.numbers(decision))
            lease = make_lease(self._place, number, namespace, connection, peer, message)
            namespace = -1
            self._leases.reserved.add(number)
            lease.job, lease.decision = job, decision
        except (Refusal, IndexError) as error:
            raise NotAllowed(str(error)) from error
        finally:
            if namespace >= 0:
                os.close(namespace)
        try:
            await self._begin_books(lease, message.fields.get("slot", ""))
            self._wiring.connect(number, lease.namespace, decision, families, besides)
            self._relay_chirp(lease)
            self._relay_names(lease)
        except BaseException:
            self._leases.add(lease)
            self._end(lease)
            raise
        finally:
            self._leases.reserved.discard(number)
        ceilings = decision.up.ceiling_mbps, decision.down.ceiling_mbps
        log.info("job network %d: by %s, up %g, down %g Mbit/s (0: no limit)", number, decision.rule, *ceilings)
        self._put_into_force(lease, connection)
        self._upkeep.one_has_come()
        await self._keep(lease, connection, Message("ok", {"number": str(number), **self._chain()}))

    async def _begin_books(self, lease: Lease, slot: str) -> None:
        """Puts the job under what was decided before it has a link; raises `NotAllowed`."""
        try:
            await self._books.begin(lease.number, lease.decision, lease.job, slot)
        except (JobCountingUnavailable, NetlinkError) as error:
            raise NotAllowed(f"the job cannot be kept to its policy: {error}") from error

    def _resent(self, number: int) -> int | None:
        """How many TCP segments the job has sent again."""
        lease = self._leases.of_number(number)
        if lease is None:
            return None
        with self._wiring.inside(lease.namespace):
            return resent_segments()

    async def resume(self, connection: Connection, peer: Peer, message: Message) -> None:
        """Takes a running job over: its wrapper lost the connection, or a former broker."""
        (namespace,) = connection.take_descriptors(1)
        try:
            self._place.require_wrapper(peer, namespace)
            number = number_in(message, "number")
            if number_in(message, "starter") != peer.parent_pid:
                raise NotAllowed("the job's starter has ended")
            lease = self._leases.of_number(number)
            # Of a wrapper that has given up waiting for an answer the connection before may still seem to be there.
            if lease is not None and lease.wrapper.pid != peer.pid:
                raise NotAllowed(f"job network {number} belongs to another job")
            if not self._wiring.leads_to(number, namespace):
                raise NotAllowed(f"job network {number} has been removed")
            if lease is None:
                kept = self._decisions.taken_over(peer.parent_pid)
                lease = make_lease(self._place, number, namespace, connection, peer, message)
                namespace = -1
                lease.job, lease.decision = kept
                self._relay_chirp(lease)
                self._relay_names(lease)
                log.info("job network %d was taken over", number)
        finally:
            if namespace >= 0:
                os.close(namespace)
        self._put_into_force(lease, connection)
        await self._keep(lease, connection, Message("ok"))

    async def join(self, connection: Connection, peer: Peer, message: Message) -> None:
        """Hands the job's namespaces to another process of the same starter: condor_ssh_to_job's sshd."""
        self._place.require_condor(peer)
        lease = self._leases.of_starter(peer.parent_pid)
        if lease is None:
            raise NotAllowed("the starter has no job with a network")
        user_namespace = lease.open_user_namespace()
        try:
            await _send(connection, Message("ok", self._chain()), (user_namespace, lease.namespace))
        finally:
            os.close(user_namespace)

    def _chain(self) -> dict[str, str]:
        wrapper = self._settings.job_wrapper
        return {"chain": str(wrapper)} if wrapper else {}

    # The life of a lease

    def _relay_chirp(self, lease: Lease) -> None:
        if lease.chirp is not None:
            listener = self._wiring.listen_inside(lease.namespace, lease.chirp.host, lease.chirp.port)
            lease.relay = ChirpRelay(listener, lease.chirp)

    def _relay_names(self, lease: Lease) -> None:
        if lease.decision.through == NONE:
            return
        for local, asked in self._place.name_servers(lease.number):
            lease.names.append(NameRelay(*self._wiring.name_sockets_inside(lease.namespace, str(local)), str(asked)))

    def _put_into_force(self, lease: Lease, connection: Connection) -> None:
        lease.connection = connection
        if lease.grace is not None:
            lease.grace.cancel()
        if lease in self._leases:
            return
        self._leases.add(lease)
        loop = asyncio.get_running_loop()
        loop.add_reader(lease.wrapper.fileno(), self._wrapper_died, lease)
        if lease.starter is not None:
            loop.add_reader(lease.starter.fileno(), self._starter_died, lease)
        self._on_count(len(self._leases))

    async def _keep(self, lease: Lease, connection: Connection, answer: Message) -> None:
        """Answers, and waits for the wrapper's `end`, or for the end of its connection."""
        try:
            await _send(connection, answer)
            message = await connection.receive()
            if message is not None and message.verb == "failed":
                self._failed.remember(lease.job, message.text)
                await _send(connection, Message("ok"))
                message = await connection.receive()
        except (OSError, ProtocolError, asyncio.TimeoutError) as error:
            log.warning("job network %d: the wrapper's connection broke: %s", lease.number, error)
            message = None
        if lease not in self._leases or lease.connection is not connection:
            return
        if message is None or message.verb != "end":
            lease.connection = None
            lease.grace = Grace(GRACE_SECONDS, partial(self._grace_is_over, lease))
            return
        account = self._books.finish(lease.number, "ended")
        flights = {"flights": json.dumps(await self._books.flights(lease.number))} if account.recorded else {}
        await self._publish(lease, account)
        log.info("job network %d ended: %s", lease.number, _told(account.totals))
        if lease not in self._leases:
            return  # the wrapper was killed meanwhile
        self._put_out_of_force(lease)
        try:
            await _send(connection, Message("ok", flights))
        finally:
            self._take_away(lease)

    async def _publish(self, lease: Lease, account: Account) -> None:
        if lease.chirp is None:
            return
        try:
            await publish(lease.chirp, account)
        except ChirpError as error:
            log.warning("job network %d: its totals are not in the job ad: %s", lease.number, error)

    def _starter_died(self, lease: Lease) -> None:
        log.warning("job network %d: the starter has ended before the job", lease.number)
        if lease.starter is not None:
            asyncio.get_running_loop().remove_reader(lease.starter.fileno())
        lease.wrapper.kill()

    def _grace_is_over(self, lease: Lease) -> None:
        log.warning("job network %d: the wrapper did not come back", lease.number)
        lease.wrapper.kill()

    def _wrapper_died(self, lease: Lease) -> None:
        """Ends a lease whose wrapper was killed: what the job has left behind goes with it."""
        try:
            account = self._books.finish(lease.number, "wrapper killed")
        except OSError as error:
            log.error("job network %d: the wrapper was killed, and the totals are lost: %s", lease.number, error)
        else:
            log.warning("job network %d: the wrapper was killed: %s", lease.number, _told(account.totals))
            self._in_background(self._publish(lease, account))
        self._end(lease)
        self._in_background(self._kill_within(lease.user))

    async def _kill_within(self, user_namespace: ancestry.Identity) -> None:
        loop = asyncio.get_running_loop()
        killed = await loop.run_in_executor(self._threads, ancestry.kill_within, user_namespace)
        if killed:
            log.warning("killed %d processes that a killed wrapper left behind", killed)

    def _end(self, lease: Lease) -> None:
        self._put_out_of_force(lease)
        self._take_away(lease)

    def _put_out_of_force(self, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        for process in (lease.wrapper, lease.starter):
            if process is not None:
                loop.remove_reader(process.fileno())
        self._leases.remove(lease)

    def _take_away(self, lease: Lease) -> None:
        """Takes the network of a lease away that is no longer in force."""
        self._wiring.discard(lease.number)
        lease.close()
        self._upkeep.some_have_gone()
        self._on_count(len(self._leases))

    def _discard_unclaimed(self, left: set[int]) -> None:
        unclaimed = left & self._leases.without_lease
        for user_namespace in abandoned(unclaimed, self._wiring.leads_to):
            self._in_background(self._kill_within(user_namespace))
        for number in unclaimed:
            log.warning("job network %d: no wrapper came back for it", number)
            self._wiring.discard(number)
        self._upkeep.some_have_gone()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _send(connection: Connection, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    await asyncio.wait_for(connection.send(message, descriptors), _ANSWER_SECONDS)


def _told(totals: Totals) -> str:
    return f"received {totals.received_bytes} bytes, sent {totals.sent_bytes} bytes"
