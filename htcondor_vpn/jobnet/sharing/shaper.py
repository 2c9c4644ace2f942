"""The two links (ifb) that all jobs' traffic passes through, one for each direction, and what waits there for whom.

    job 0  eth0 ── htvj0 ─┐  what it sends     ┌───────┐
    job 1  eth0 ── htvj1 ─┼──────────────────→ │ htvup │ ─→ back to htvj<n>, and on into the inner namespace
                          │                    └───────┘
                          │  what it receives  ┌─────────┐
                          └──────────────────→ │ htvdown │ ─→ back to htvj<n>, and on to the job
                                               └─────────┘

A job's class is found by the hardware address of the sender, which is the number of the job network, and the link.
The kernel keeps classes and counts while a broker is replaced, and beside each link a note of what its job may have.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

from htcondor_vpn.addresses import SHAPER_INDICES, SHAPER_NAMES
from htcondor_vpn.jobnet.policy.decision import Decision, Share
from htcondor_vpn.jobnet.sharing.division import Member
from htcondor_vpn.jobnet.sharing.tree import UNCLASSIFIED, Tree, job_class
from htcondor_vpn.linux import links, traffic_control
from htcondor_vpn.linux.netlink import Netlink, NetlinkError, Request
from htcondor_vpn.linux.shaping import segment_bytes
from htcondor_vpn.linux.traffic_control import BFIFO, FQ_CODEL, Class

log = logging.getLogger(__name__)

#: The longest name of a group, quoted, that fits into a link's note as it is.
_LONGEST_GROUP = 120
_QUEUES = {FQ_CODEL: "fq_codel", BFIFO: "bfifo, for this kernel has no fq_codel"}


class Note(NamedTuple):
    """What of a decision is needed to share: it is written beside the job's link."""

    group: str
    weight: float
    up: Share
    down: Share

    @classmethod
    def of(cls, decision: Decision) -> Note:
        """Takes it from a decision; the name of a group that is too long becomes its hash."""
        group = decision.group.encode(errors="surrogateescape")
        if len(json.dumps(decision.group)) > _LONGEST_GROUP:
            return cls(hashlib.sha256(group).hexdigest(), decision.weight, decision.up, decision.down)
        return cls(decision.group, decision.weight, decision.up, decision.down)

    def encode(self) -> str:
        """As text of less than 256 bytes."""
        shares = [[share.guaranteed_mbps, share.ceiling_mbps] for share in (self.up, self.down)]
        return json.dumps([self.group, self.weight, *shares], separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Note:
        """Reads what `encode` has made."""
        group, weight, up, down = json.loads(text)
        return cls(group, weight, Share(*up), Share(*down))


class Shaper:
    """Shapes what jobs send (`up`) and receive; the rates are what all may use together, 0 if that is not known.

    `largest_bytes` is what a job without a limit should send at once.
    """

    def __init__(self, netlink: Netlink, up_mbps: float, down_mbps: float, mtu: int, largest_bytes: int) -> None:
        self._netlink = netlink
        self._mtu, self._largest_bytes = mtu, largest_bytes
        self._largest_shaped_bytes = links.LEGACY_SEGMENT_BYTES
        self._up, self._down = (Tree(index, rate) for index, rate in zip(SHAPER_INDICES, (up_mbps, down_mbps)))
        #: Why nothing can be shaped.
        self._obstacle: NetlinkError | None = None

    def open(self, notes: Mapping[int, str]) -> None:
        """Makes the links, or takes over a former broker's; `notes` are those beside the jobs' links that exist.

        Where the kernel cannot do that, jobs that are to be shaped are refused later.
        """
        try:
            self._open({number: Note.decode(note) for number, note in notes.items()})
        except NetlinkError as error:
            self._obstacle = error
            log.error("this kernel cannot shape the jobs' traffic (%s): jobs with a limit will not run", error)
        else:
            log.info("jobs' traffic is shaped by htb, and waits in %s", _QUEUES[self._up.queue])

    def _open(self, jobs: Mapping[int, Note]) -> None:
        for tree, name in zip((self._up, self._down), SHAPER_NAMES):
            try:
                self._netlink.do([links.make_ifb(name, index=tree.index, mtu=self._mtu)])
            except NetlinkError as error:
                if error.errno != errno.EEXIST:
                    raise
            else:
                self._netlink.do(tree.make())
            tree.queue = self._queue_kind(tree)
            classes = traffic_control.list_classes(self._netlink, tree.index)
            orphans = tree.adopt(classes, self._of_direction(tree, jobs))
            self._netlink.do([*orphans, links.set_up(tree.index)], besides=(errno.ENOENT,))
        self._pass_large_segments()

    def _pass_large_segments(self) -> None:
        """Has the links pass on what jobs send at once, where this kernel does not insist on cutting it there."""
        if self._largest_bytes == links.LEGACY_SEGMENT_BYTES:
            return
        try:
            self._netlink.do([links.set_segment_size(index, self._largest_bytes) for index in SHAPER_INDICES])
        except NetlinkError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            self._largest_shaped_bytes = self._largest_bytes

    def _of_direction(self, tree: Tree, jobs: Mapping[int, Note]) -> dict[int, Member]:
        return {number: tree.member(note.group, note.weight, self._share(tree, note)) for number, note in jobs.items()}

    def _share(self, tree: Tree, note: Note) -> Share:
        return note.up if tree is self._up else note.down

    def _queue_kind(self, tree: Tree) -> str:
        """The best kind of queue that the kernel has, as the tree has it already or by trying."""
        kind = traffic_control.queue_kind(self._netlink, tree.index, UNCLASSIFIED)
        if kind:
            return kind
        try:
            self._netlink.do([tree.set_unclassified_queue(FQ_CODEL)])
            return FQ_CODEL
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
        self._netlink.do([tree.set_unclassified_queue(BFIFO)])
        return BFIFO

    def segments(self, note: Note) -> tuple[int, int]:
        """How many bytes the job, and the broker's end of its link, should send at once."""
        up, down = (tree.fastest_bps(self._share(tree, note)) for tree in (self._up, self._down))
        return self._segment_bytes(up), self._segment_bytes(down)

    def _segment_bytes(self, bps: float) -> int:
        return segment_bytes(bps, self._largest_shaped_bytes) if math.isfinite(bps) else self._largest_bytes

    def add(self, number: int, note: Note, index: int, link_name: str) -> list[Request]:
        """Shapes job network `number`, whose link is given; the requests are for the caller to send.

        Raises `NetlinkError` where the kernel cannot shape.
        """
        trees = [tree for tree in (self._up, self._down) if tree.holds(self._share(tree, note))]
        if not trees:
            return []
        if self._obstacle is not None:
            raise self._obstacle
        requests = []
        for tree in trees:
            member = tree.member(note.group, note.weight, self._share(tree, note))
            requests += tree.add(number, member, link_name)
        requests += traffic_control.redirect(
            index,
            received_to=self._up.index if self._up in trees else None,
            sent_to=self._down.index if self._down in trees else None,
        )
        return [*requests, links.set_note(index, note.encode())]

    def remove(self, number: int) -> list[Request]:
        """No longer shapes a job network: what still comes by its link is dropped."""
        return self._up.remove(number) + self._down.remove(number)

    def rebalance(self) -> None:
        """Gives each job the part that it has among those that are there now; raises `NetlinkError`."""
        self._netlink.do(self._up.rebalance() + self._down.rebalance())

    def counted(self, number: int) -> tuple[Class | None, Class | None]:
        """What has left the classes of a job, up and down; None for a direction that is not shaped."""
        up, down = (
            traffic_control.get_class(self._netlink, tree.index, job_class(number)) if number in tree else None
            for tree in (self._up, self._down)
        )
        return up, down
