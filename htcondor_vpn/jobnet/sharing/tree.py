"""The classes of one direction (HTB): pilot, groups, jobs. Each has its part and borrows what others leave.

    the pilot's rate ─┬─ group ─┬─ job        the parts of the jobs add up to the pilot's rate, and a group's
                      │         └─ job        is the sum of its jobs'
                      └─ group ─── job

Where the pilot's rate is not known there is nothing to divide, and so neither pilot nor groups: only ceilings hold.
This is arithmetic and book-keeping; the requests are for the caller to send.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from htcondor_vpn.jobnet.policy.decision import Share
from htcondor_vpn.jobnet.sharing.division import Member, divide
from htcondor_vpn.linux import traffic_control
from htcondor_vpn.linux.netlink import Request
from htcondor_vpn.linux.shaping import LOWEST_BPS, Limit, limit_for
from htcondor_vpn.linux.traffic_control import Class

#: Minor numbers of classes; job n has _FIRST_JOB + n, and groups those between.
UNCLASSIFIED = 2
_TREE, _PILOT, _FIRST_GROUP, _FIRST_JOB = 0, 1, 3, 0x8000


def job_class(number: int) -> int:
    """The class of job network `number`."""
    return _FIRST_JOB + number


class Tree:
    """The classes on link `index`; `rate_mbps` is what all jobs may use together, 0 if that is not known."""

    def __init__(self, index: int, rate_mbps: float) -> None:
        self.index = index
        self.rate_bps = max(rate_mbps * 1e6, LOWEST_BPS) if rate_mbps else math.inf
        #: How packets wait in the classes of jobs.
        self.queue = traffic_control.BFIFO
        self._members: dict[int, Member] = {}
        self._groups: dict[str, int] = {}
        #: What the kernel has been told, by minor number.
        self._limits: dict[int, Limit] = {}

    @property
    def is_divided(self) -> bool:
        """Whether there is a rate to divide."""
        return math.isfinite(self.rate_bps)

    def holds(self, share: Share) -> bool:
        """Whether a job with this share has to pass through the tree."""
        return self.is_divided or share.ceiling_mbps > 0

    def fastest_bps(self, share: Share) -> float:
        """What a job with this share gets at best; math.inf for all that there is."""
        return min(self.rate_bps, max(share.ceiling_mbps * 1e6, LOWEST_BPS) if share.ceiling_mbps else math.inf)

    def make(self) -> list[Request]:
        """Makes the tree without any job: what is no job's is dropped."""
        requests = traffic_control.make_tree(self.index, UNCLASSIFIED)
        requests.append(traffic_control.add_class(self.index, UNCLASSIFIED, limit_for(LOWEST_BPS)))
        if self.is_divided:
            requests.append(traffic_control.add_class(self.index, _PILOT, limit_for(self.rate_bps)))
        return requests

    def set_unclassified_queue(self, kind: str) -> Request:
        """Gives the class of what is no job's a queue that holds nothing."""
        nothing = limit_for(LOWEST_BPS)._replace(queue_bytes=0)
        return traffic_control.set_queue(self.index, UNCLASSIFIED, kind, nothing)

    def member(self, group: str, weight: float, share: Share) -> Member:
        """A job as a member of this tree."""
        return Member(group, weight, share.guaranteed_mbps * 1e6, self.fastest_bps(share))

    def __contains__(self, number: int) -> bool:
        return number in self._members

    def add(self, number: int, member: Member, link_name: str) -> list[Request]:
        """Makes room for a job, whose link has that name. It can only borrow until the next `rebalance`."""
        self._members[number] = member
        minor, parent, requests = job_class(number), _TREE, []
        limit = limit_for(LOWEST_BPS if self.is_divided else member.ceiling_bps, member.ceiling_bps)
        if self.is_divided:
            parent = self._groups.get(member.group, 0)
            if not parent:
                taken = set(self._groups.values())
                parent = next(minor for minor in range(_FIRST_GROUP, _FIRST_JOB) if minor not in taken)
                self._groups[member.group] = parent
                of_group = limit_for(LOWEST_BPS, self.rate_bps)
                requests.append(traffic_control.add_class(self.index, parent, of_group, _PILOT))
        return [
            *requests,
            traffic_control.add_class(self.index, minor, limit, parent),
            traffic_control.set_queue(self.index, minor, self.queue, limit),
            traffic_control.add_entry(self.index, number, minor, link_name),
        ]

    def remove(self, number: int) -> list[Request]:
        """Removes a job, and its group with the last one in it; nothing for a job that is not here."""
        member = self._members.pop(number, None)
        if member is None:
            return []
        minor = job_class(number)
        self._limits.pop(minor, None)
        requests = [
            traffic_control.remove_entry(self.index, number),
            traffic_control.remove_class(self.index, minor),
        ]
        if member.group in self._groups and all(other.group != member.group for other in self._members.values()):
            group = self._groups.pop(member.group)
            self._limits.pop(group, None)
            requests.append(traffic_control.remove_class(self.index, group))
        return requests

    def rebalance(self) -> list[Request]:
        """Gives each job and group the part that it has now, where that has changed."""
        requests = []
        for minor, limit in self._wanted().items():
            if self._limits.get(minor) != limit:
                self._limits[minor] = limit
                parent = self._parent(minor)
                requests.append(traffic_control.change_class(self.index, minor, limit, parent))
        return requests

    def adopt(self, classes: Iterable[Class], jobs: Mapping[int, Member]) -> list[Request]:
        """Takes over what is in the kernel for `jobs`, by number; what is nobody's is to be removed."""
        orphans, used = [], set()
        parents = {each.minor: each.parent for each in classes}
        for minor, parent in parents.items():
            number = minor - _FIRST_JOB
            if number in jobs:
                self._members[number] = jobs[number]
                used.add(parent)
                if parent >= _FIRST_GROUP:
                    self._groups[jobs[number].group] = parent
            elif number >= 0:
                orphans.append(traffic_control.remove_entry(self.index, number))
                orphans.append(traffic_control.remove_class(self.index, minor))
        empty = {minor for minor in parents if _FIRST_GROUP <= minor < _FIRST_JOB} - used
        return orphans + [traffic_control.remove_class(self.index, minor) for minor in empty]

    def _parent(self, minor: int) -> int:
        if minor < _FIRST_JOB:
            return _PILOT
        return self._groups.get(self._members[minor - _FIRST_JOB].group, _TREE)

    def _wanted(self) -> dict[int, Limit]:
        """The limit of each group and job, where they are parts of a rate."""
        limits: dict[int, Limit] = {}
        of_groups: dict[str, float] = {}
        parts = divide(self.rate_bps, self._members) if self.is_divided else {}
        for number, part in parts.items():
            member, rate = self._members[number], max(part, LOWEST_BPS)
            limits[job_class(number)] = limit_for(rate, member.ceiling_bps)
            of_groups[member.group] = of_groups.get(member.group, 0.0) + rate
        for group, rate in of_groups.items():
            limits[self._groups[group]] = limit_for(min(rate, self.rate_bps), self.rate_bps)
        return limits
