"""Where a broker serves: who may ask it, and what its jobs' networks lead to. In a pilot, that is its tunnel."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from htcondor_vpn.addresses import MAX_JOBS
from htcondor_vpn.jobnet import admission
from htcondor_vpn.jobnet.policy.decision import NONE, TUNNEL, Decision
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.linux import ancestry
from htcondor_vpn.linux.peers import Peer
from htcondor_vpn.route_rules import led_beside
from htcondor_vpn.settings import Settings
from htcondor_vpn.special_addresses import Address, Network

#: Frames of a job's link. The connections end in the engine, so no path has to carry them. With 4000 bytes the headers
#: are 1.7 % of what the limits and counters see (1500: 4.4 %), and ten connections at once through a limit of 2 Mbit/s
#: still make progress (at 9000 too few fit into its queue, and they wait for timeouts).
TUNNEL_MTU = 4000


class Place(Protocol):
    """See the module."""

    #: The networks of a policy that jobs can have here.
    networks: Collection[str]
    #: Of a job's link, bytes.
    mtu: int
    #: Whether what jobs connect to ends on this host, so that nothing of theirs goes onto a wire as they sent it.
    end_here: bool

    def require_account(self, peer: Peer) -> None:
        """Raises `NotAllowed` for a process of an account that has no business here."""

    def require_condor(self, peer: Peer) -> None:
        """Raises `NotAllowed` unless the peer is a process that HTCondor itself started, a hook or an sshd."""

    def require_wrapper(self, peer: Peer, namespace: int) -> None:
        """Raises `NotAllowed` unless the peer is a job wrapper that made this network namespace."""

    def require_network(self, decision: Decision) -> None:
        """Raises `Refusal` while a job cannot be given the network that was decided for it."""

    def reach(self, decision: Decision) -> tuple[Collection[str], Sequence[Network]]:
        """The families ("ipv4", "ipv6") and the networks besides that a job has a route for."""

    def numbers(self, decision: Decision) -> range:
        """Which of the numbers of job networks such a job may have."""

    def name_servers(self, number: int) -> Sequence[tuple[Address, Address]]:
        """Those on the loopback here that job network `number` is to find on its own, and who is asked for each."""


class PilotPlace:
    """Inside a pilot. `families` is what the tunnel carries, None until the supervisor has said so.

    `lead` has what is of such families led to the tunnel; raises OSError.
    """

    networks: Collection[str] = frozenset({TUNNEL, NONE})
    mtu = TUNNEL_MTU
    end_here = True

    def __init__(
        self, settings: Settings, run_dir: Path, inner: ancestry.Identity, lead: Callable[[Collection[str]], None]
    ) -> None:
        self.families: frozenset[str] | None = None
        self._lead = lead
        self._settings, self._inner = settings, inner
        self._state_file = run_dir / "state.json"

    def carried(self, families: Iterable[str]) -> None:
        """Has the jobs from now on reach these; raises OSError."""
        told = frozenset(families)
        self._lead(told)
        self.families = told

    def require_account(self, peer: Peer) -> None:
        admission.require_same_user(peer)

    def require_condor(self, peer: Peer) -> None:
        admission.require_pilot_process(peer, self._inner)

    def require_wrapper(self, peer: Peer, namespace: int) -> None:
        admission.require_wrapper(peer, self._inner, namespace)

    def require_network(self, decision: Decision) -> None:
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))["state"]
        except (OSError, ValueError, KeyError) as error:
            raise Refusal(SubCode.TUNNEL_NOT_UP, f"the state of the tunnel is not known: {error}") from error
        if state != "up" or self.families is None:
            raise Refusal(SubCode.TUNNEL_NOT_UP, f"the tunnel of this slot is {state}")

    def reach(self, decision: Decision) -> tuple[Collection[str], Sequence[Network]]:
        if self.families is None:
            raise admission.NotAllowed("the tunnel has not been up yet")
        if decision.through == NONE:
            return (), ()
        return self.families, led_beside(self._settings.routes, self.families)

    def numbers(self, decision: Decision) -> range:
        return range(MAX_JOBS)

    def name_servers(self, number: int) -> Sequence[tuple[Address, Address]]:
        return ()
