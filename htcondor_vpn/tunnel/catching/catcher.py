"""Catches every connection and datagram inside the pilot's network namespace and makes it an engine's.

All destinations are routed to the loopback, where nftables hands each TCP connection, and each UDP datagram if those
are carried, to a transparent socket (the kernel's TPROXY): no address is translated, and the socket knows where it
wanted to go. What is neither that nor a question to the resolver is rejected, so that an application is told at once.
There is no other interface: what no one catches goes nowhere.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from htcondor_vpn.addresses import (
    INNER_V4,
    INNER_V6,
    JOB_LINK,
    OWN_V4,
    OWN_V6,
    PILOT_V4,
    PILOT_V6,
    POINT_LINK,
    POLICY_MARK,
    TPROXY_MARK,
    TPROXY_PORT,
)
from htcondor_vpn.errors import CatcherUnavailable
from htcondor_vpn.linux import links
from htcondor_vpn.linux.congestion import pace_nothing
from htcondor_vpn.linux.datagrams import make_icmp_socket, make_room, make_sockets
from htcondor_vpn.linux.echoes import allow_echoes
from htcondor_vpn.linux.namespaces import capabilities_to_programs
from htcondor_vpn.linux.netlink import Netlink, NetlinkError, Request
from htcondor_vpn.linux.programs import ProgramFailed, find_program, run_program
from htcondor_vpn.special_addresses import Network
from htcondor_vpn.tunnel.catching.queue_rules import queue_packets
from htcondor_vpn.tunnel.catching.refusals import Refusal
from htcondor_vpn.tunnel.engine import InnerSockets
from htcondor_vpn.wire.tls import reset_on_close

_BACKLOG = 4096
_DNS_PORT = 53

# linux/in.h and linux/in6.h; Python's socket module lacks them.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_SEGMENT_BYTES = 8 * 0xFFFF  # the most that Linux takes (GSO_MAX_SIZE)
_DNS_BUFFER_BYTES = 1024 * 1024

#: To each single host; what is for many, a gateway could not carry.
_CATCH_DATAGRAMS = f"""
        ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} return
        meta l4proto udp meta mark set {TPROXY_MARK} tproxy to :{TPROXY_PORT} accept
"""

_EVERYTHING: dict[str, Network] = {"ipv4": IPv4Network("0.0.0.0/0"), "ipv6": IPv6Network("::/0")}

_RULES = f"""
table inet htcondor_vpn {{
    chain catch {{
        type filter hook prerouting priority mangle
        ip daddr {{ {", ".join(OWN_V4)} }} return
        ip6 daddr {{ {", ".join(OWN_V6)} }} return
        meta mark {{ {", ".join(f"{refusal:d}" for refusal in Refusal)}, {POLICY_MARK} }} return
        meta l4proto tcp meta mark set {TPROXY_MARK} tproxy to :{TPROXY_PORT} accept
        @datagrams@
    }}
    chain jobs {{
        ip daddr {PILOT_V4} meta l4proto {{ tcp, udp }} th dport {_DNS_PORT} accept
        ip6 daddr {PILOT_V6} meta l4proto {{ tcp, udp }} th dport {_DNS_PORT} accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    }}
    chain guard {{
        type filter hook input priority filter; policy drop;
        meta mark {TPROXY_MARK} accept
        @refusals@
        iifname "lo" ip daddr {{ 127.0.0.0/8, {INNER_V4} }} accept
        iifname "lo" ip6 daddr {{ ::1, fe80::/10, {INNER_V6} }} accept
        iifname "{JOB_LINK}*" jump jobs
        iifname "{POINT_LINK}" jump jobs
        ip6 daddr ff00::/8 drop
        meta l4proto tcp reject with tcp reset
        reject with icmpx type admin-prohibited
    }}
}}
"""

#: What a job sends in another's name (anyone may bind an IPv6 socket to any address, ipv6(7) IPV6_FREEBIND) goes
#: nowhere: the other one would be sent the answers.
_OWN_SOURCES = f"""
table inet htcondor_vpn {{
    chain sources {{
        type filter hook prerouting priority -310
        iifname "{JOB_LINK}*" fib saddr . iif oif missing drop
    }}
}}
"""

log = logging.getLogger(__name__)


def find_nft() -> str:
    """Returns the path of nft; raises `ProgramMissing`."""
    return find_program("nft", "nftables")


def catch(nft: str, families: Iterable[str], udp: bool, holding: str, besides: Iterable[Network] = ()) -> InnerSockets:
    """Sets up the network namespace that this process is in, with capabilities, and returns the sockets to serve.

    `families` are those that the tunnel carries ("ipv4", "ipv6"); a connection of the other one is refused at once
    unless it is to one of the networks `besides`, and so are datagrams unless it carries `udp`. `holding` tells
    whether connects wait for the far side's answer ("on", "off", "auto"). Raises OSError or `CatcherUnavailable`.
    """
    _forward_nothing()
    pace_nothing()
    _send_large_segments()
    _answer_everyone()
    _route_to_loopback(set(families), besides)
    refusals = "\n        ".join(f"meta mark {refusal:d} {refusal.statement}" for refusal in Refusal)
    rules = _RULES.replace("@datagrams@", _CATCH_DATAGRAMS if udp else "").replace("@refusals@", refusals)
    try:
        run_program([nft, "-f", "-"], stdin=rules, preexec=capabilities_to_programs)
    except ProgramFailed as error:
        said = error.stderr.strip().partition("\n")[0] or f"exit code {error.code}"
        raise CatcherUnavailable(
            f"connections cannot be caught inside: {nft}: {said}", "have an administrator run: modprobe nft_tproxy"
        ) from error
    _check_sources(nft)
    sockets = _listen(udp)
    queues = queue_packets(nft, holding)
    if queues.syns is not None:
        sockets.queues.append(queues.syns)
    if queues.echoes is not None:
        allow_echoes()
        sockets.echoes.append(queues.echoes)
        sockets.echo_replies += [make_icmp_socket(flows.family) for flows in sockets.flows]
    return sockets


def _check_sources(nft: str) -> None:
    try:
        run_program([nft, "-f", "-"], stdin=_OWN_SOURCES, preexec=capabilities_to_programs)
    except ProgramFailed as error:  # connects, datagrams and pings are checked by the engine as well
        said = error.stderr.strip().partition("\n")[0]
        log.warning("a job may ask the resolver in another job's name, for this kernel lacks nft_fib: %s", said)


def _forward_nothing() -> None:
    """A new namespace inherits the host's IPv4 settings: no job may reach another one through us."""
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        path = Path("/proc/sys/net", name)
        if path.exists():  # a kernel without IPv6 forwards none
            path.write_text("0")


def _send_large_segments() -> None:
    """What goes to the engine on this host goes through TCP, the routes and the rules once for 512 KB, not for 64."""
    with Netlink() as netlink, suppress(NetlinkError):  # an older kernel has smaller ones
        netlink.do([links.set_segment_size(links.LOOPBACK_INDEX, _SEGMENT_BYTES)])


def _answer_everyone() -> None:
    """Has each job be told of each connect that fails: the kernel would send six messages, and then one a second."""
    for name in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
        with suppress(OSError):  # then the rest of them is told when their kernel asks again
            Path("/proc/sys/net", name).write_text("0")


def _route_to_loopback(families: set[str], besides: Iterable[Network]) -> None:
    requests = [links.set_up(links.LOOPBACK_INDEX), links.add_address(links.LOOPBACK_INDEX, PILOT_V4, 32)]
    if _has_ipv6():
        requests.append(links.add_address(links.LOOPBACK_INDEX, PILOT_V6, 128))
    caught = [network for family, network in _EVERYTHING.items() if family in families]
    requests += map(_caught, (*caught, *besides))
    with Netlink() as netlink:
        netlink.do(requests)


def catch_more(families: Collection[str]) -> None:
    """Has connections of `families` caught as well, of which some may be already, since they are carried by now.

    To be called in that network namespace, with capabilities; raises OSError.
    """
    with Netlink() as netlink:
        requests = [_caught(network) for family, network in _EVERYTHING.items() if family in families]
        netlink.do(requests, besides=(errno.EEXIST,))


def _caught(network: Network) -> Request:
    pilot = PILOT_V4 if network.version == 4 else PILOT_V6
    return links.add_local_route(network, pilot, links.LOOPBACK_INDEX)


def _has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


def _listen(udp: bool) -> InnerSockets:
    sockets = InnerSockets()
    addresses: list[tuple[IPv4Address | IPv6Address, str]] = [(PILOT_V4, "0.0.0.0")]  # noqa: S104
    if _has_ipv6():
        addresses.append((PILOT_V6, "::"))
    for pilot, anywhere in addresses:
        family = socket.AF_INET6 if pilot.version == 6 else socket.AF_INET
        flows = socket.socket(family, socket.SOCK_STREAM)
        flows.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            flows.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            flows.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            flows.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        flows.bind((anywhere, TPROXY_PORT))
        # What is accepted inherits it: should the engine die, a flow that it was opening is reset and not ended.
        reset_on_close(flows, True)
        flows.listen(_BACKLOG)
        sockets.flows.append(flows)
        for kind, found in ((socket.SOCK_DGRAM, sockets.dns_datagrams), (socket.SOCK_STREAM, sockets.dns_streams)):
            dns = socket.socket(family, kind)
            dns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            dns.bind((str(pilot), _DNS_PORT))
            if kind == socket.SOCK_STREAM:
                dns.listen(_BACKLOG)
            else:
                # Many jobs start at once, and a question that is lost is asked again after five seconds.
                make_room(dns, _DNS_BUFFER_BYTES)
            found.append(dns)
        if udp:
            made = make_sockets(family, TPROXY_PORT)
            sockets.datagrams.append(made.caught)
            sockets.answers.append(made.answers)
            sockets.errors.append(made.errors)
    return sockets
