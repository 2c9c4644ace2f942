"""A job's hold on its network: who it belongs to, and whose death ends it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from htcondor_vpn.addresses import MAX_JOBS
from htcondor_vpn.condor.chirp import ChirpConfig
from htcondor_vpn.jobnet.chirp_relay import ChirpRelay
from htcondor_vpn.jobnet.grace import Grace
from htcondor_vpn.jobnet.name_relay import NameRelay
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.protocol import Connection
from htcondor_vpn.linux import ancestry
from htcondor_vpn.linux.peers import Watched


@dataclass(eq=False)
class Lease:
    """One job network. It ends when the wrapper says so, or when wrapper or starter die.

    `namespace` is a descriptor of the job's network namespace, `connection` the wrapper's; it is None while a wrapper
    that still lives has lost it, and then `grace` is how long it may. `job` is the job's name (GlobalJobId), if known,
    `decision` what was decided for it.
    """

    number: int
    namespace: int
    wrapper: Watched
    starter: Watched | None
    chirp: ChirpConfig | None = None
    job: str = ""
    decision: Decision = Decision()
    relay: ChirpRelay | None = None
    names: list[NameRelay] = field(default_factory=list)
    connection: Connection | None = None
    grace: Grace | None = None
    network: ancestry.Identity = field(init=False)
    user: ancestry.Identity = field(init=False)

    def __post_init__(self) -> None:
        self.network = ancestry.identity(self.namespace)
        owner = self.open_user_namespace()
        self.user = ancestry.identity(owner)
        os.close(owner)

    def open_user_namespace(self) -> int:
        """Opens the job's user namespace."""
        return ancestry.owner(self.namespace)

    def close(self) -> None:
        """Lets go of all that keeps the job's namespaces alive, and of its processes."""
        if self.grace is not None:
            self.grace.cancel()
        if self.relay is not None:
            self.relay.close()
        for names in self.names:
            names.close()
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1
        for process in (self.wrapper, self.starter):
            if process is not None:
                process.close()


class Leases:
    """The leases in force, and the numbers that are free."""

    def __init__(self) -> None:
        self._by_number: dict[int, Lease] = {}
        #: Numbers whose links exist without a lease: another broker's, or about to be deleted.
        self.without_lease: set[int] = set()
        #: Numbers whose links are about to be made.
        self.reserved: set[int] = set()
        self._next: dict[range, int] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._by_number.values()))

    def free_number(self, among: range = range(MAX_JOBS)) -> int:
        """Returns a number that is not in use, the one longest unused first; raises IndexError when there is none."""
        first = self._next.get(among, 0)
        for step in range(len(among)):
            number = among[(first + step) % len(among)]
            if not any(number in taken for taken in (self._by_number, self.without_lease, self.reserved)):
                self._next[among] = first + step + 1
                return number
        raise IndexError("all job networks are in use")

    def add(self, lease: Lease) -> None:
        """Puts a lease into force."""
        self._by_number[lease.number] = lease
        self.without_lease.discard(lease.number)

    def remove(self, lease: Lease) -> None:
        """Takes a lease out of force; its number stays reserved in `without_lease`."""
        del self._by_number[lease.number]
        self.without_lease.add(lease.number)

    def __contains__(self, lease: Lease) -> bool:
        return self._by_number.get(lease.number) is lease

    def of_number(self, number: int) -> Lease | None:
        """The lease of job network `number`."""
        return self._by_number.get(number)

    def of_network(self, network: ancestry.Identity) -> Lease | None:
        """The lease of a network namespace."""
        return next((lease for lease in self._by_number.values() if lease.network == network), None)

    def of_starter(self, pid: int) -> Lease | None:
        """The latest lease of a starter's job."""
        found = [lease for lease in self._by_number.values() if lease.starter and lease.starter.pid == pid]
        return found[-1] if found else None
