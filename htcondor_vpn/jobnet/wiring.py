"""Wires a job's network namespace to the inner one, limits it, reads its counters, and takes it away again.

The limits and the counters are on the broker's end of the link, where the job cannot reach them:

    job's namespace            inner namespace
    eth0  ───── veth ─────  htvj<n>  ─┬─→ htvup     what the job sends passes through here, and comes back
                                      └─→ htvdown   what it receives

The kernel keeps all of it while a broker is replaced; `open` finds it again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from typing import NamedTuple

from htcondor_vpn.addresses import FIRST_INDEX, INSIDE_JOB, JOB_LINK, PILOT_V4, SHAPER_INDICES, job_link
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.sharing.shaper import Note, Shaper
from htcondor_vpn.linux import links
from htcondor_vpn.linux.congestion import pace_nothing
from htcondor_vpn.linux.echoes import allow_echoes
from htcondor_vpn.linux.namespaces import CLONE_NEWNET, setns
from htcondor_vpn.linux.netlink import Netlink, NetlinkError, Request
from htcondor_vpn.special_addresses import Network

#: The index of the link inside the job's namespace, above those that the kernel may have put there.
INSIDE_INDEX = 1 << 12

#: Links that are to be deleted.
DISCARDED_GROUP = 0x64656C

_EVERYTHING_V4, _EVERYTHING_V6 = ip_network("0.0.0.0/0"), ip_network("::/0")
_RESOLVER = ip_network(f"{PILOT_V4}/32")


#: The kernel's answers when something is gone already: a link, a class, an entry.
_ABSENT = (errno.ENODEV, errno.ENOENT)


class Totals(NamedTuple):
    """What a job has received and sent, in bytes on its link (headers included) and packets."""

    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int


class Wiring:
    """The broker's hold on the links of the inner namespace, which is the one it is made in.

    The rates are what all jobs may use together, 0 if that is not known; `mtu` is that of a job's link, bytes. Where
    the jobs' connections `end_here`, on this host, segments without a limit are as large as the kernel has them: what
    a packet costs on its way through rules and routes it then costs once for 512 KB, not for 64. Nor are they paced.
    """

    def __init__(self, up_mbps: float = 0.0, down_mbps: float = 0.0, *, mtu: int, end_here: bool) -> None:
        self._mtu, self._end_here = mtu, end_here
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._netlink = Netlink()
        self._sweeper = Netlink()
        largest_bytes = links.largest_segment_bytes(self._netlink) if end_here else links.LEGACY_SEGMENT_BYTES
        self._shaper = Shaper(self._netlink, up_mbps, down_mbps, mtu, largest_bytes)

    def open(self) -> set[int]:
        """Makes what all job networks need, and returns the numbers of those that a former broker has left."""
        left = self._links()
        self._shaper.open({number: link.note for number, link in left.items() if link.note})
        return set(left)

    def connect(
        self,
        number: int,
        namespace: int,
        decision: Decision,
        families: Collection[str],
        besides: Sequence[Network] = (),
    ) -> None:
        """Wires `namespace` as job network `number`; raises `NetlinkError` after removing what it made.

        A family (`ipv4`, `ipv6`) that the tunnel does not carry is unreachable from the start, but for the networks
        `besides`.
        """
        addressed = {*families, *(f"ipv{network.version}" for network in besides)}
        try:
            self._netlink.do(self._our_end(number, namespace, decision, addressed))
            with self.inside(namespace), Netlink() as inside:
                allow_echoes()
                if self._end_here:
                    pace_nothing()
                inside.do(_job_end(number, families, besides))
        except OSError:
            self.discard(number)
            raise

    def _our_end(self, number: int, namespace: int, decision: Decision, families: Collection[str]) -> list[Request]:
        index, name, link = FIRST_INDEX + 2 * number, f"{JOB_LINK}{number}", job_link(number)
        note = Note.of(decision)
        up_bytes, down_bytes = self._shaper.segments(note)
        here = links.End(name, index, link.broker_hardware, down_bytes)
        there = links.End(INSIDE_JOB, INSIDE_INDEX, link.job_hardware, up_bytes)
        veth = links.make_veth(here, there, namespace, mtu=self._mtu)
        requests = [veth, links.add_address(index, link.broker_v4, 31)]
        if "ipv6" in families:
            requests.append(links.add_address(index, link.broker_v6, 127))
        return [*requests, *self._shaper.add(number, note, index, name), links.set_up(index)]

    def rebalance(self) -> None:
        """Divides among the jobs that are there now what they may use together; raises `NetlinkError`."""
        self._shaper.rebalance()

    def totals(self, number: int) -> Totals:
        """Reads what job `number` has moved; raises `NetlinkError` (ENODEV) when its link is gone.

        A direction that is shaped is counted behind its limits, so that what their queues dropped is not counted, and
        in frames; one that is not is counted as the kernel hands it over.
        """
        link = links.get_link(self._netlink, FIRST_INDEX + 2 * number).counters
        sent_bytes, sent_packets = link.received_bytes, link.received_packets
        received_bytes, received_packets = link.sent_bytes, link.sent_packets
        up, down = self._shaper.counted(number)
        if up is not None:
            sent_bytes, sent_packets = up.sent_bytes, up.sent_packets
        if down is not None:
            received_bytes, received_packets = down.sent_bytes, down.sent_packets
        return Totals(received_bytes, sent_bytes, received_packets, sent_packets)

    def exists(self, number: int) -> bool:
        """Whether the link of job `number` exists; raises `NetlinkError`."""
        try:
            links.get_link(self._netlink, FIRST_INDEX + 2 * number)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def _links(self) -> dict[int, links.Link]:
        return {
            (link.number - FIRST_INDEX) // 2: link
            for link in links.list_links(self._netlink)
            if link.number >= FIRST_INDEX and link.name.startswith(JOB_LINK)
        }

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
        """Marks the link of job `number` for `sweep`. It takes no time, and a link that is gone is no error."""
        mark = links.set_group(FIRST_INDEX + 2 * number, DISCARDED_GROUP)
        self._netlink.do([mark, *self._shaper.remove(number)], besides=_ABSENT)

    def sweep(self) -> None:
        """Deletes all discarded links: tens of milliseconds in the kernel, so it is called in a thread of its own."""
        self._sweeper.do([links.delete_group(DISCARDED_GROUP)], besides=_ABSENT)

    def close(self) -> None:
        """Takes away all links, the jobs' and those that shape; raises `NetlinkError`."""
        indices = [FIRST_INDEX + 2 * number for number in self._links()]
        marks = [links.set_group(index, DISCARDED_GROUP) for index in (*indices, *SHAPER_INDICES)]
        self._netlink.do(marks, besides=_ABSENT)
        self.sweep()

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

    def name_sockets_inside(self, namespace: int, host: str) -> tuple[socket.socket, socket.socket]:
        """Opens the sockets of a name server in `namespace`, of datagrams and one that listens; raises OSError."""
        streams = self.listen_inside(namespace, host, 53)
        try:
            with self.inside(namespace):
                datagrams = socket.socket(streams.family, socket.SOCK_DGRAM)
            datagrams.setblocking(False)
            datagrams.bind((host, 53))
        except OSError:
            streams.close()
            raise
        return datagrams, streams

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


def _job_end(number: int, families: Collection[str], besides: Sequence[Network]) -> list[Request]:
    link, index = job_link(number), INSIDE_INDEX
    requests = [
        links.set_up(links.LOOPBACK_INDEX),
        links.set_up(index),
        links.add_address(index, link.job_v4, 31),
    ]
    if families or besides:
        requests.append(links.add_route(_RESOLVER, link.broker_v4, index))
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
