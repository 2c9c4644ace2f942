"""What of the kernel a pilot uses inside its namespaces, each tried by the pilot's own code."""

from __future__ import annotations

import os
import platform
import re
import socket
from ipaddress import IPv4Address

from htcondor_vpn.doctor.finding import Finding, bad, good, limited
from htcondor_vpn.doctor.trying import Refused, try_in_child, try_in_namespaces
from htcondor_vpn.errors import CatcherUnavailable, ProgramMissing
from htcondor_vpn.jobnet.place import TUNNEL_MTU
from htcondor_vpn.jobnet.policy.decision import Decision, Share
from htcondor_vpn.jobnet.wiring import Wiring
from htcondor_vpn.linux.links import make_wireguard
from htcondor_vpn.linux.namespaces import CLONE_NEWNET, setns, unshare
from htcondor_vpn.linux.netlink import Netlink
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.linux.seccomp import suspend_sockets
from htcondor_vpn.linux.tun import make_tun
from htcondor_vpn.tunnel.catching.catcher import catch

OLDEST = (5, 4)

#: Reserved for documentation (RFC 5737), so that nobody's address is meant.
_SOMEWHERE = IPv4Address("203.0.113.1")
_CONNECT_SECONDS = 10.0


def version(release: str = "") -> Finding:
    """Whether the kernel is new enough."""
    release = release or platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) >= OLDEST:
        return good("kernel", f"Linux {release}")
    oldest = ".".join(map(str, OLDEST))
    return bad("kernel", f"Linux {release}: {oldest} is the oldest that is supported", f"use Linux {oldest} or newer")


def catching() -> Finding:
    """Whether a connection to anywhere arrives at our sockets, inside."""

    def probe() -> str:
        sockets = catch(find_program("nft", "nftables"), ("ipv4", "ipv6"), True, "off")
        with socket.socket() as client:
            client.settimeout(_CONNECT_SECONDS)
            client.connect((str(_SOMEWHERE), 80))
            listener = sockets.flows[0]
            listener.settimeout(_CONNECT_SECONDS)
            accepted, _ = listener.accept()
            with accepted:
                if accepted.getsockname() != (str(_SOMEWHERE), 80):
                    raise CatcherUnavailable("a connection that was caught does not tell where it was to go")
        return ""

    try:
        find_program("nft", "nftables")
    except ProgramMissing as error:
        return bad("catching connections", error.cause, "install nftables (or make a bundle, which has nft inside)")
    try:
        try_in_namespaces(probe)
    except Refused as error:
        return bad("catching connections", error.cause, error.remedy or "modprobe nft_tproxy nft_socket")
    return good("catching connections", "nft and tproxy work inside")


def holding() -> Finding:
    """Whether a connect can wait for the far side's answer, and ping can work (NFQUEUE)."""

    def probe() -> str:
        catch(find_program("nft", "nftables"), ("ipv4",), False, "on")
        return ""

    try:
        try_in_namespaces(probe)
    except Refused as error:
        return limited("holding connects", error.cause, "modprobe nft_queue nfnetlink_queue, or install iptables")
    return good("holding connects", "a connect fails as it would without a tunnel, and ping works")


def job_networks() -> Finding:
    """Whether a job can have a network of its own that is limited and counted."""

    def probe() -> str:
        wiring = Wiring(mtu=TUNNEL_MTU, end_here=True)
        wiring.open()
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        unshare(CLONE_NEWNET)
        job = os.open("/proc/self/ns/net", os.O_RDONLY)
        setns(home, CLONE_NEWNET)
        rate = Share(ceiling_mbps=100)
        wiring.connect(0, job, Decision(up=rate, down=rate), {"ipv4"})
        wiring.totals(0)
        return ""

    try:
        try_in_namespaces(probe)
    except Refused as error:
        return bad("job networks", error.cause, "modprobe veth sch_htb ifb act_mirred cls_u32 sch_tbf")
    return good("job networks", "links, limits and counters work inside")


def tun() -> Finding:
    """Whether a packet VPN can have its device, inside."""

    def probe() -> str:
        os.close(make_tun("doctor"))
        return ""

    try:
        try_in_namespaces(probe)
    except Refused as error:
        return bad("tun devices", error.cause, "modprobe tun; chmod 0666 /dev/net/tun")
    return good("tun devices", "they can be made inside")


def wireguard() -> Finding:
    """Whether the kernel has a WireGuard of its own that may be used inside. Nothing of ours does so."""

    def probe() -> str:
        with Netlink() as netlink:
            netlink.do([make_wireguard("doctor", index=2)])
        return ""

    try:
        try_in_namespaces(probe, CLONE_NEWNET)
    except Refused as error:
        return limited("kernel WireGuard", f"none ({error.cause.rpartition(': ')[2]}); wireguard-go does without")
    return good("kernel WireGuard", "its links can be made inside; wireguard-go is used all the same")


def seccomp() -> Finding:
    """Whether a program's sockets can be made for it (seccomp_unotify(2)), as wireguard-go needs it."""

    def probe() -> str:
        os.close(suspend_sockets())
        return ""

    try:
        try_in_child(probe)
    except Refused as error:
        return bad("seccomp notification", error.cause, "use Linux 5.14 or newer, and no container around the jobs")
    return good("seccomp notification", "a program's sockets can be made for it")
