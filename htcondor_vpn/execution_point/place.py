"""An execution point as the place where a broker serves (jobnet/place.py): root's, with the host's own network.

Jobs that go through the tunnel of an account have numbers of their own, and so addresses.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from htcondor_vpn.addresses import FIRST_TUNNELLED, MAX_JOBS, PILOT_V4
from htcondor_vpn.execution_point import admission
from htcondor_vpn.execution_point.host_network import MTU, HostNetwork
from htcondor_vpn.execution_point.tunnel import Tunnel
from htcondor_vpn.jobnet.admission import NotAllowed
from htcondor_vpn.jobnet.policy.decision import HOST, NONE, TUNNEL, Decision
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.linux.peers import Peer
from htcondor_vpn.special_addresses import Address, Network


class ExecutionPoint:
    """See `Place`."""

    mtu = MTU
    end_here = False

    def __init__(self, network: HostNetwork, tunnel: Tunnel | None) -> None:
        self._network, self._tunnel = network, tunnel
        self.networks: Collection[str] = frozenset({HOST, NONE} if tunnel is None else {HOST, NONE, TUNNEL})
        status = os.stat("/proc/self/ns/user")
        self._host = status.st_dev, status.st_ino

    def require_account(self, peer: Peer) -> None:
        admission.require_starter(peer)

    def require_condor(self, peer: Peer) -> None:
        admission.require_starters_process(peer, self._host)

    def require_wrapper(self, peer: Peer, namespace: int) -> None:
        admission.require_starters_wrapper(peer, self._host, namespace)

    def require_network(self, decision: Decision) -> None:
        try:
            self.reach(decision)
        except NotAllowed as error:
            raise Refusal(SubCode.TUNNEL_NOT_UP, str(error)) from error

    def reach(self, decision: Decision) -> tuple[Collection[str], Sequence[Network]]:
        if decision.through == NONE:
            return (), ()
        families = self._tunnel_families() if decision.through == TUNNEL else self._network.families()
        if not families:
            missing = "tunnel is not up" if decision.through == TUNNEL else "host has no route to anywhere outside"
            raise NotAllowed(f"this {missing}")
        return families, ()

    def _tunnel_families(self) -> Collection[str]:
        return () if self._tunnel is None else self._tunnel.families()

    def numbers(self, decision: Decision) -> range:
        return range(FIRST_TUNNELLED, MAX_JOBS) if decision.through == TUNNEL else range(FIRST_TUNNELLED)

    def name_servers(self, number: int) -> Sequence[tuple[Address, Address]]:
        servers = self._network.loopback_name_servers()
        return [(server, PILOT_V4 if number >= FIRST_TUNNELLED else server) for server in servers]
