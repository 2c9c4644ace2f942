"""The tunnel of an ordinary account on this host, for those jobs whose policy says so.

That account keeps `htcondor-vpn run` running, whose inner namespace has its engine. Jobs have their links on the host
as all others do, limited and counted there; by the source addresses of their numbers they are routed into one more
link, which ends in that namespace:

    job ── htvj<n> ─(host: its routes by source)─ htvtun ── htvpoint ─ inner namespace of the account: its engine

What comes from these addresses goes there or nowhere, whatever becomes of the tunnel: where the link has gone with its
namespace, they are unreachable until there is another one. Every question for a name goes to the tunnel's resolver.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

from htcondor_vpn.addresses import (
    JOB_LINK,
    PILOT_V4,
    PILOT_V6,
    POINT_LINK,
    POINT_LINK_INDEX,
    TUNNEL_LINK,
    TUNNEL_LINK_INDEX,
    TUNNEL_LINK_V4,
    TUNNEL_LINK_V6,
    TUNNELLED_V4,
    TUNNELLED_V6,
)
from htcondor_vpn.execution_point.host_network import MTU
from htcondor_vpn.linux import ancestry, links
from htcondor_vpn.linux.namespaces import CLONE_NEWNET, setns
from htcondor_vpn.linux.netlink import Netlink, NetlinkError
from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.linux.routing_rules import add_rule, delete_rule
from htcondor_vpn.publish.advertiser.state_file import MAX_STATE_BYTES, STATE_FILE
from htcondor_vpn.publish.state import State
from htcondor_vpn.special_addresses import Address, Network

#: How often it is seen whether the account's namespace is another one.
LOOK_SECONDS = 2.0

_ROUTES = 104
_RULE, _NOWHERE = 10400, 10401
_GROUP = 0x68747674
_HERE, _THERE = b"\x02\x68\x74\x02\0\0", b"\x02\x68\x74\x03\0\0"
_TABLE = "htcondor_vpn_tunnel"
_RULES = f"""
table inet {_TABLE} {{
    chain names {{
        type nat hook prerouting priority dstnat;
        ip saddr {TUNNELLED_V4} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {PILOT_V4}
        ip6 saddr {TUNNELLED_V6} meta l4proto {{ tcp, udp }} th dport 53 dnat ip6 to {PILOT_V6}
    }}
    chain onwards {{
        type filter hook forward priority filter;
        ip saddr {TUNNELLED_V4} oifname != "{TUNNEL_LINK}" drop
        ip6 saddr {TUNNELLED_V6} oifname != "{TUNNEL_LINK}" drop
        oifname "{TUNNEL_LINK}" ip saddr != {TUNNELLED_V4} drop
        oifname "{TUNNEL_LINK}" ip6 saddr != {TUNNELLED_V6} drop
        iifname "{TUNNEL_LINK}" oifname != "{JOB_LINK}*" drop
    }}
    chain own {{
        type filter hook input priority filter;
        iifname != "{TUNNEL_LINK}" accept
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        drop
    }}
    chain others {{
        type filter hook output priority filter;
        oifname "{TUNNEL_LINK}" meta skuid != 0 drop
    }}
}}
"""
_REMOVAL = f"table inet {_TABLE}\ndelete table inet {_TABLE}\n"

log = logging.getLogger(__name__)


class Tunnel:
    """That of the `htcondor-vpn run` whose run folder is `run_dir`. `open` it before a job gets a network."""

    def __init__(self, run_dir: Path, nft: str) -> None:
        self._run_dir, self._nft = run_dir, nft
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        status = os.stat("/proc/self/ns/user")
        self._user = status.st_dev, status.st_ino
        self._netlink = Netlink()
        self._said = ""

    def open(self) -> None:
        """Has jobs of its numbers go there or nowhere; raises `ProgramFailed` and OSError."""
        run_program([self._nft, "-f", "-"], stdin=_REMOVAL + _RULES)
        self._netlink.do([add_rule(*rule) for rule in _rules()], besides={errno.EEXIST})
        self.attach()

    def families(self) -> frozenset[str]:
        """What the tunnel carries now; nothing while it is not up."""
        try:
            state = self._state()
        except (OSError, ValueError) as error:
            self._say(f"the tunnel of {self._run_dir} is not known: {error}")
            return frozenset()
        if state.word() != "up" or not self.attach():
            return frozenset()
        return frozenset(state.families)

    def attach(self) -> bool:
        """Leads to the account's namespace, which may be another one than before; returns whether there is one."""
        try:
            namespace = self._inner_network()
            try:
                if not self._leads_to(namespace):
                    self._remove_link()
                    self._make_link(namespace)
                    log.info("jobs can go through the tunnel of %s", self._run_dir)
                    self._said = ""
            finally:
                os.close(namespace)
        except (OSError, ValueError) as error:
            self._say(f"no job can go through the tunnel of {self._run_dir}: {error}")
            return False
        return True

    def _say(self, text: str) -> None:
        if text != self._said:
            log.warning("%s", text)
            self._said = text

    def _state(self) -> State:
        """Reads what the account says; its file must not make us wait, nor lead elsewhere."""
        path = self._run_dir / STATE_FILE
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{path} is no file")
            return State.of(file.read(MAX_STATE_BYTES + 1))

    def _inner_network(self) -> int:
        """Opens the inner network namespace; raises OSError where the account has none of its own."""
        uid, pid = self._run_dir.stat().st_uid, self._state().pid
        for child in _children(pid):
            try:
                namespace = os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # it has just ended
            if self._is_of(uid, namespace):
                return namespace
            os.close(namespace)
        raise ProcessLookupError(f"process {pid}, which its state.json names, has no network namespace of uid {uid}")

    def _is_of(self, uid: int, namespace: int) -> bool:
        """Whether an account made the network namespace, and it is not the host's."""
        owner = ancestry.owner(namespace)
        try:
            apart = ancestry.identity(owner) != self._user and ancestry.lies_within(owner, self._user)
            return apart and ancestry.owner_uid(owner) == uid
        finally:
            os.close(owner)

    @contextmanager
    def _inside(self, namespace: int) -> Iterator[Netlink]:
        setns(namespace, CLONE_NEWNET)  # of this thread alone
        try:
            netlink = Netlink()
        finally:
            setns(self._home, CLONE_NEWNET)
        with netlink:
            yield netlink

    def _leads_to(self, namespace: int) -> bool:
        try:
            links.get_link(self._netlink, TUNNEL_LINK_INDEX)
            with self._inside(namespace) as inside:
                return links.get_link(inside, POINT_LINK_INDEX).peer == TUNNEL_LINK_INDEX
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise

    def _remove_link(self) -> None:
        _remove_link(self._netlink)

    def _make_link(self, namespace: int) -> None:
        here = links.End(TUNNEL_LINK, TUNNEL_LINK_INDEX, _HERE, links.LEGACY_SEGMENT_BYTES)
        there = links.End(POINT_LINK, POINT_LINK_INDEX, _THERE, links.LEGACY_SEGMENT_BYTES)
        self._netlink.do([links.make_veth(here, there, namespace, mtu=MTU)])
        ours, theirs, routes, back = [], [], [], []
        for (our, their), jobs, resolver in _families():
            length = our.max_prefixlen - 1
            ours.append(links.add_address(TUNNEL_LINK_INDEX, our, length))
            theirs.append(links.add_address(POINT_LINK_INDEX, their, length))
            back.append(links.add_route(jobs, our, POINT_LINK_INDEX))
            everything = ip_network("0.0.0.0/0" if our.version == 4 else "::/0")
            routes.append(links.add_route(everything, their, TUNNEL_LINK_INDEX, _ROUTES))
            routes.append(links.add_route(ip_network(resolver), their, TUNNEL_LINK_INDEX))
        self._netlink.do([*ours, links.set_up(TUNNEL_LINK_INDEX)])
        with self._inside(namespace) as inside:
            inside.do([*theirs, links.set_up(POINT_LINK_INDEX), *back])
        self._netlink.do(routes)


def take_back(nft: str) -> None:
    """Removes what a `Tunnel` has made on this host; raises `ProgramFailed` and OSError. May be repeated."""
    with Netlink() as netlink:
        _remove_link(netlink)
        netlink.do([delete_rule(*rule) for rule in _rules()], besides={errno.ENOENT})
    run_program([nft, "-f", "-"], stdin=_REMOVAL)


def _remove_link(netlink: Netlink) -> None:
    requests = [links.set_group(TUNNEL_LINK_INDEX, _GROUP), links.delete_group(_GROUP)]
    netlink.do(requests, besides={errno.ENODEV})


def _families() -> list[tuple[tuple[Address, Address], Network, Address]]:
    found: list[tuple[tuple[Address, Address], Network, Address]] = [(TUNNEL_LINK_V4, TUNNELLED_V4, PILOT_V4)]
    if Path("/proc/sys/net/ipv6").exists():
        found.append((TUNNEL_LINK_V6, TUNNELLED_V6, PILOT_V6))
    return found


def _rules() -> list[tuple[int, Network, int | None]]:
    return [rule for _, jobs, _ in _families() for rule in ((_RULE, jobs, _ROUTES), (_NOWHERE, jobs, None))]


def _children(pid: int) -> list[int]:
    """The children of the main thread of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
