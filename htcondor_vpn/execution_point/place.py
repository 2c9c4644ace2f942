"""An execution point as the place where a broker serves (jobnet/place.py): root's, with the host's own network."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from htcondor_vpn.execution_point import admission
from htcondor_vpn.execution_point.host_network import MTU, HostNetwork
from htcondor_vpn.jobnet.admission import NotAllowed
from htcondor_vpn.jobnet.policy.decision import HOST, NONE, Decision
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.linux.peers import Peer
from htcondor_vpn.special_addresses import Address, Network


class ExecutionPoint:
    """See `Place`."""

    networks: Collection[str] = frozenset({HOST, NONE})
    mtu = MTU
    end_here = False

    def __init__(self, network: HostNetwork) -> None:
        self._network = network
        status = os.stat("/proc/self/ns/user")
        self._host = status.st_dev, status.st_ino

    def require_account(self, peer: Peer) -> None:
        admission.require_starter(peer)

    def require_condor(self, peer: Peer) -> None:
        admission.require_starters_process(peer, self._host)

    def require_wrapper(self, peer: Peer, namespace: int) -> None:
        admission.require_starters_wrapper(peer, self._host, namespace)

    def require_network(self) -> None:
        if not self._network.families():
            raise Refusal(SubCode.TUNNEL_NOT_UP, "this host has no route to anywhere outside")

    def reach(self, decision: Decision) -> tuple[Collection[str], Sequence[Network]]:
        if decision.through == NONE:
            return (), ()
        families = self._network.families()
        if not families:
            raise NotAllowed("this host has no route to anywhere outside")
        return families, ()

    def name_servers(self) -> Sequence[Address]:
        return self._network.loopback_name_servers()
