"""Wires a job's network namespace to the inner one, limits it, reads its counters, and takes it away again.

The limits and the counters are on the broker's end of the link, where the job cannot reach them:

    job's namespace            inner namespace
    eth0  ───── veth ─────  htvj<n>   its egress is limited: what the job receives
                               └────  htvi<n>   (ifb) what the job sends goes through here, limited

The kernel keeps all of it while a broker is replaced; `adopt` finds it again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from typing import NamedTuple

from htcondor_vpn.addresses import FIRST_INDEX, INSIDE_JOB, JOB_LINK, JOB_UPLINK_SHAPER, PILOT_V4, job_link
from htcondor_vpn.jobnet.policy import Rates
from htcondor_vpn.linux import links, shaping
from htcondor_vpn.linux.echoes import allow_echoes
from htcondor_vpn.linux.namespaces import CLONE_NEWNET, setns
from htcondor_vpn.linux.netlink import Netlink, NetlinkError, Request
from htcondor_vpn.special_addresses import Network

#: Frames of a job's link. The connections end in the engine, so no path has to carry them. With 4000 bytes the headers
#: are 1.7 % of what the limits and counters see (1500: 4.4 %), and ten connections at once through a limit of 2 Mbit/s
#: still make progress (at 9000 too few fit into its queue, and they wait for timeouts).
MTU = 4000

#: The index of the link inside the job's namespace, above those that the kernel may have put there.
INSIDE_INDEX = 1 << 12

#: Links that are to be deleted.
DISCARDED_GROUP = 0x64656C

_EVERYTHING_V4, _EVERYTHING_V6 = ip_network("0.0.0.0/0"), ip_network("::/0")
_RESOLVER = ip_network(f"{PILOT_V4}/32")


class Totals(NamedTuple):
    """What a job has received and sent, in bytes on its link (headers included) and packets."""

    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int


class Wiring:
    """The broker's hold on the links of the inner namespace, which is the one it is made in."""

    def __init__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._netlink = Netlink()
        self._sweeper = Netlink()

    def connect(
        self,
        number: int,
        namespace: int,
        rates: Rates,
        families: Collection[str],
        besides: Sequence[Network] = (),
    ) -> None:
        """Wires `namespace` as job network `number`; raises `NetlinkError` after removing what it made.

        A family (`ipv4`, `ipv6`) that the tunnel does not carry is unreachable from the start, but for the networks
        `besides`.
        """
        addressed = {*families, *(f"ipv{network.version}" for network in besides)}
        try:
            self._netlink.do(self._our_end(number, namespace, rates, addressed))
            with self.inside(namespace), Netlink() as inside:
                allow_echoes()
                inside.do(_job_end(number, families, besides))
        except OSError:
            self.discard(number)
            raise

    def _our_end(self, number: int, namespace: int, rates: Rates, families: Collection[str]) -> list[Request]:
        index, shaper = FIRST_INDEX + 2 * number, FIRST_INDEX + 2 * number + 1
        link = job_link(number)
        requests = [
            links.make_veth(
                f"{JOB_LINK}{number}", INSIDE_JOB, namespace, index=index, peer_index=INSIDE_INDEX, mtu=MTU
            ),
            links.add_address(index, link.broker_v4, 31),
        ]
        if "ipv6" in families:
            requests.append(links.add_address(index, link.broker_v6, 127))
        if rates.down_mbps:
            requests += shaping.limit_sending(index, _limit(rates.down_mbps))
        if rates.up_mbps:
            requests.append(links.make_ifb(f"{JOB_UPLINK_SHAPER}{number}", index=shaper, mtu=MTU))
            requests += shaping.limit_sending(shaper, _limit(rates.up_mbps))
            requests += [links.set_up(shaper), *shaping.redirect_received(index, shaper)]
        return [*requests, links.set_up(index)]

    def totals(self, number: int) -> Totals:
        """Reads what job `number` has moved; raises `NetlinkError` (ENODEV) when its link is gone.

        What the job sends is counted behind its limit, so that what the limit's queue dropped is not counted.
        """
        link = links.get_link(self._netlink, FIRST_INDEX + 2 * number).counters
        sent_bytes, sent_packets = link.received_bytes, link.received_packets
        try:
            shaper = links.get_link(self._netlink, FIRST_INDEX + 2 * number + 1).counters
            sent_bytes, sent_packets = shaper.sent_bytes, shaper.sent_packets
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
        return Totals(link.sent_bytes, sent_bytes, link.sent_packets, sent_packets)

    def numbers(self) -> set[int]:
        """The job networks whose links exist, for a new broker to know what another has left."""
        found = set()
        for link in links.list_links(self._netlink):
            if link.number >= FIRST_INDEX and link.name.startswith((JOB_LINK, JOB_UPLINK_SHAPER)):
                found.add((link.number - FIRST_INDEX) // 2)
        return found

    def leads_to(self, number: int, namespace: int) -> bool:
        """Whether the link of job `number` exists and its other end is in `namespace`."""
        index = FIRST_INDEX + 2 * number
        try:
            links.get_link(self._netlink, index)
            with self.inside(namespace), Netlink() as inside:
                return links.get_link(inside, INSIDE_INDEX).peer == index
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise

    def discard(self, number: int) -> None:
        """Marks the links of job `number` for `sweep`. It takes no time, and links that are gone are no error."""
        for index in (FIRST_INDEX + 2 * number, FIRST_INDEX + 2 * number + 1):
            self._ignoring_absence(self._netlink, links.set_group(index, DISCARDED_GROUP))

    def sweep(self) -> None:
        """Deletes all discarded links: tens of milliseconds in the kernel, so it is called in a thread of its own."""
        self._ignoring_absence(self._sweeper, links.delete_group(DISCARDED_GROUP))

    @staticmethod
    def _ignoring_absence(netlink: Netlink, request: Request) -> None:
        try:
            netlink.do([request])
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise

    @contextmanager
    def inside(self, namespace: int) -> Iterator[None]:
        """What is opened here belongs to `namespace`. No await within.

        A network namespace is a property of the calling thread, and the thread that sweeps never opens anything.
        """
        setns(namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(self._home, CLONE_NEWNET)

    def listen_inside(self, namespace: int, host: str, port: int) -> socket.socket:
        """Opens a listening TCP socket in `namespace`; raises OSError."""
        with self.inside(namespace):
            listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(16)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        return listener


def _limit(rate_mbps: float) -> shaping.Limit:
    return shaping.limit_for(max(rate_mbps * 1e6, shaping.LOWEST_BPS))


def _job_end(number: int, families: Collection[str], besides: Sequence[Network]) -> list[Request]:
    link, index = job_link(number), INSIDE_INDEX
    requests = [
        links.set_up(links.LOOPBACK_INDEX),
        links.set_up(index),
        links.add_address(index, link.job_v4, 31),
        links.add_route(_RESOLVER, link.broker_v4, index),
    ]
    for everything, broker in ((_EVERYTHING_V6, link.broker_v6), (_EVERYTHING_V4, link.broker_v4)):
        version = everything.version
        led = [network for network in besides if network.version == version]
        if version == 6 and (led or "ipv6" in families):
            requests.append(links.add_address(index, link.job_v6, 127))
        if f"ipv{version}" in families:
            requests.append(links.add_route(everything, broker, index))
        else:
            requests.append(links.refuse_route(everything))
            requests += [links.add_route(network, broker, index) for network in led]
    return requests
