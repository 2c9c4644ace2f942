"""A job's flight recorder: whom it talked to, and what was refused to it. Bounded, whatever the job does.

It is fed with what the kernel has counted for each flow since the flow was last forgotten; a flow that is forgotten, to
make room for others in the kernel, is settled here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from htcondor_vpn.addresses import POLICY_MARK
from htcondor_vpn.jobnet.counting.account import OTHER
from htcondor_vpn.jobnet.counting.answers import Named, Undelivered
from htcondor_vpn.jobnet.counting.table import Flow, Moved, Peer
from htcondor_vpn.special_addresses import Address

FILE = "vpn-flight-recorder.json"
VERSION = 1

#: How many destinations are told apart, how many refusals, how many names are remembered.
MOST_DESTINATIONS = 500
MOST_REFUSALS = 200
MOST_NAMES = 2000

#: By what packets were refused, by their mark (`addresses.REFUSAL_MARKS`, as the engine gives them, and the policy's).
_REASONS = {
    2: "the far side refused the connection",
    3: "the tunnel was down, or carries no such IP version",
    4: "the gateway has no route there",
    5: "the gateway prohibits it",
    POLICY_MARK: "the policy of this slot forbids it",
}


@dataclass
class Destination:
    """One entry. Times are unix seconds, bytes those of frames on the job's link; `name` is what was looked up."""

    address: str
    port: int
    protocol: str
    name: str
    first_seen: float
    last_seen: float


@dataclass
class Contact(Destination):
    """A destination that packets were let go to; with no byte received it never answered."""

    class_name: str = OTHER
    bytes_in: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    packets_out: int = 0


@dataclass
class Refusal(Destination):
    """A destination that was refused, `attempts` packets of it."""

    reason: str = ""
    attempts: int = 0


Key = tuple[str, str, int, str]  # address, protocol, port, and class or reason


class Recorder:
    """One job's. `class_names` are those of the policy that the job is under, number 1 and on."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self._class_names = (OTHER, *class_names)
        self._names: dict[Address, str] = {}
        self.contacts: dict[Key, Contact] = {}
        self.refusals: dict[Key, Refusal] = {}
        #: What has been settled, by the flow.
        self._settled: dict[Key, Moved] = {}
        self._last: dict[Flow, Moved] = {}
        self._others = Moved()  # settled flows beyond the bound
        self._others_now: dict[Flow, Moved] = {}
        self.others = 0
        #: What was moved in flows that the kernel did not tell apart, the job having too many.
        self.unlisted = Moved()
        self.refusals_not_listed = 0
        self.complete = True

    def heard(self, said: Named | Undelivered, now: float) -> None:
        """Takes what the job was told."""
        if isinstance(said, Undelivered):
            self._refuse(Flow(said.peer, 0), said.reason, 1, now)
            return
        for address in said.addresses:
            self._names.pop(address, None)
            self._names[address] = said.name
        while len(self._names) > MOST_NAMES:
            del self._names[next(iter(self._names))]

    def see(self, flows: Mapping[Flow, Moved], now: float) -> dict[Flow, Moved]:
        """Takes what the kernel has counted by now; returns those that have been silent since the last time."""
        for flow, moved in flows.items():
            before = self._last.get(flow, Moved())
            if moved == before:
                continue
            if flow.refused_by:
                reason = _REASONS.get(flow.refused_by, "refused")
                self._refuse(flow, reason, moved.sent_packets - before.sent_packets, now)
            else:
                self._contact(flow, moved, now)
        silent = {flow: moved for flow, moved in flows.items() if self._last.get(flow) == moved}
        self._last = dict(flows)
        return silent

    def settle(self, flows: Mapping[Flow, Moved]) -> None:
        """Is told that the kernel has forgotten `flows`: if one of them comes again, it begins at zero."""
        for flow, moved in flows.items():
            self._last.pop(flow, None)
            if flow.refused_by:
                continue
            if self._others_now.pop(flow, None) is not None:
                self._others = self._others.plus(moved)
            else:
                key = self._key(flow, self._class(flow))
                self._settled[key] = self._settled.get(key, Moved()).plus(moved)

    def kernel_forgot(self) -> None:
        """Is told that the kernel has forgotten all flows, with what they have moved since they were last seen."""
        self._settled = {
            key: Moved(contact.bytes_out, contact.bytes_in, contact.packets_out, contact.packets_in)
            for key, contact in self.contacts.items()
        }
        self._others, self.unlisted = self._others.plus(self.unlisted), Moved()
        self._last = {}

    def _contact(self, flow: Flow, moved: Moved, now: float) -> None:
        key = self._key(flow, self._class(flow))
        contact = self.contacts.get(key)
        if contact is None:
            if len(self.contacts) >= MOST_DESTINATIONS:
                self.others += flow not in self._others_now
                self._others_now[flow] = moved
                return
            peer = flow.peer
            contact = self.contacts[key] = Contact(
                str(peer.address), peer.port, peer.protocol, "", now, now, class_name=self._class(flow)
            )
        contact.name = contact.name or self._names.get(flow.peer.address, "")
        contact.last_seen = now
        whole = self._settled.get(key, Moved()).plus(moved)
        contact.bytes_in, contact.bytes_out = whole.received_bytes, whole.sent_bytes
        contact.packets_in, contact.packets_out = whole.received_packets, whole.sent_packets

    def _refuse(self, flow: Flow, reason: str, attempts: int, now: float) -> None:
        key, peer = self._key(flow, reason), flow.peer
        refusal = self.refusals.get(key)
        if refusal is None:
            if len(self.refusals) >= MOST_REFUSALS:
                self.refusals_not_listed += attempts
                return
            refusal = self.refusals[key] = Refusal(
                str(peer.address), peer.port, peer.protocol, "", now, now, reason=reason
            )
        refusal.name = refusal.name or self._names.get(peer.address, "")
        refusal.attempts += attempts
        refusal.last_seen = now

    def _class(self, flow: Flow) -> str:
        return self._class_names[flow.number] if flow.number < len(self._class_names) else OTHER

    @staticmethod
    def _key(flow: Flow, kind: str) -> Key:
        return str(flow.peer.address), flow.peer.protocol, flow.peer.port, kind

    def message(self, most: int = MOST_DESTINATIONS) -> dict[str, Any]:
        """For JSON: the `most` destinations with most bytes, the rest summed; and as many refusals."""
        contacts = sorted(self.contacts.values(), key=lambda each: each.bytes_in + each.bytes_out, reverse=True)
        refusals = sorted(self.refusals.values(), key=lambda each: each.attempts, reverse=True)
        rest = self._others.plus(self.unlisted)
        for moved in self._others_now.values():
            rest = rest.plus(moved)
        for contact in contacts[most:]:
            rest = rest.plus(Moved(contact.bytes_out, contact.bytes_in, contact.packets_out, contact.packets_in))
        unlisted = self.refusals_not_listed + sum(refusal.attempts for refusal in refusals[most:])
        return {
            "version": VERSION,
            "complete": self.complete,
            "destinations": [{**vars(each)} for each in contacts[:most]],
            "refused": [{**vars(each)} for each in refusals[:most]],
            "others": {
                "destinations": self.others + len(contacts[most:]),
                "bytes_in": rest.received_bytes,
                "bytes_out": rest.sent_bytes,
                "refused": unlisted,
            },
        }

    def state(self) -> dict[str, Any]:
        """The message, and what a later broker needs besides to go on: see `of`."""
        refused = {flow: moved for flow, moved in self._last.items() if flow.refused_by}
        return {
            **self.message(),
            "settled": [[*key, *moved] for key, moved in self._settled.items()],
            "others_settled": [self.others - len(self._others_now), *self._others],
            "refused_seen": [[*_encoded(flow), *moved] for flow, moved in refused.items()],
            "unlisted": list(self.unlisted),
            "not_listed": self.refusals_not_listed,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], class_names: tuple[str, ...]) -> Recorder:
        """Goes on where a former broker's recorder was; what that one has not written down any more is missing.

        Raises KeyError, ValueError or TypeError for what is no state.
        """
        recorder = cls(class_names)
        recorder.complete = False
        for each in state["destinations"]:
            contact = Contact(**each)
            recorder.contacts[contact.address, contact.protocol, contact.port, contact.class_name] = contact
        for each in state["refused"]:
            refusal = Refusal(**each)
            recorder.refusals[refusal.address, refusal.protocol, refusal.port, refusal.reason] = refusal
        recorder._settled = {tuple(each[:4]): Moved(*each[4:]) for each in state["settled"]}
        recorder.others, *others = state["others_settled"]
        recorder._others, recorder.unlisted = Moved(*others), Moved(*state["unlisted"])
        recorder._last = {_decoded(each[:5]): Moved(*each[5:]) for each in state["refused_seen"]}
        recorder.refusals_not_listed = state["not_listed"]
        return recorder


def _encoded(flow: Flow) -> list[Any]:
    return [str(flow.peer.address), flow.peer.protocol, flow.peer.port, flow.number, flow.refused_by]


def _decoded(message: Sequence[Any]) -> Flow:
    address, protocol, port, number, refused_by = message
    return Flow(Peer(ip_address(address), protocol, port), number, refused_by)
