"""What gateways for packets share: the namespace where packets come out is caught, and this host carries it on."""

from __future__ import annotations

import signal

from htcondor_vpn.errors import NamespacesUnavailable, by_name
from htcondor_vpn.gateway.serving.connector import Connector
from htcondor_vpn.gateway.serving.destinations import PublicPolicy
from htcondor_vpn.gateway.serving.families import Families
from htcondor_vpn.gateway.serving.names import Names
from htcondor_vpn.gateway.serving.resolver import Resolver
from htcondor_vpn.gateway.serving.roster import Limits
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.children import fork_child
from htcondor_vpn.packet_gateway.host_carrier import HostCarrier
from htcondor_vpn.packet_gateway.pilots_engine import PilotsEngine
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace
from htcondor_vpn.tunnel.catching.catcher import catch
from htcondor_vpn.tunnel.engine import InnerSockets
from htcondor_vpn.tunnel.members import Lone
from htcondor_vpn.tunnel.pool import Pool
from htcondor_vpn.wire.dialing import tune


def host_engine(settings: Settings) -> PilotsEngine:
    """The engine that goes on from here, to where the settings let pilots go."""
    policy = PublicPolicy(settings.gateway_allow, settings.gateway_deny)
    carrier = HostCarrier(Connector(policy, Names(), Limits().connect_seconds), Resolver(), Families(policy))
    return PilotsEngine(Pool("host", [Lone(carrier)], settings.probe_interval, settings.probe_timeout))


def caught(namespace: TunNamespace, nft: str, holding: str) -> InnerSockets:
    """Has connections and datagrams in the namespace caught, and returns the sockets to serve; raises `VpnError`."""

    def work(channel: Channel) -> None:
        namespace.enter()
        sockets = catch(nft, ("ipv4", "ipv6"), True, holding)
        channel.send({"kinds": sockets.kinds()}, [sock.fileno() for sock in sockets.all()])

    child = fork_child("catcher", work, signal.pthread_sigmask(signal.SIG_BLOCK, ()), namespace.descriptors)
    try:
        received = child.channel.receive()
    finally:
        child.reap()
    if received is None:
        raise NamespacesUnavailable("connections cannot be caught: the process that tried has died")
    message, descriptors = received
    if "error" in message:
        raise by_name(message["error"], message["cause"], message["remedy"])
    sockets = InnerSockets.adopt(descriptors, message["kinds"])
    for listener in sockets.flows:  # what is accepted inherits it: a node may vanish without a word
        tune(listener)
    return sockets
