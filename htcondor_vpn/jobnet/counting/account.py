"""What one job has moved: by class, how fast, and with how many connections."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from htcondor_vpn.jobnet.counting.table import Flow, Moved
from htcondor_vpn.jobnet.wiring import Totals

#: The class of what is in no class of the policy's, whose names have no parentheses.
OTHER = "(other)"

#: Rates are not taken over less than this: a packet of 512 KB in a millisecond is no rate.
_SHORTEST_SECONDS = 1.0

#: Classes that are the site's own, to Lark's names for traffic.
INTERNAL = ("campus", "internal")


@dataclass
class Account:
    """The account of one job network, kept by samples of what the kernel counts.

    Bytes are those of whole frames on the job's link; `totals` has all of them, `classes` those of IP packets, before
    they are cut into frames. `started` is in unix seconds, `began` on the clock that all processes of this node share
    (CLOCK_MONOTONIC). Rates are in Mbit/s, peaks the means between two samples. `resent_segments` is None where the
    kernel does not tell. `outcome` is empty while the job runs. `settled` is what of `classes` the kernel forgot.
    """

    number: int
    job: str = ""
    slot: str = ""
    rule: str = ""
    recorded: bool = False
    class_names: tuple[str, ...] = ()
    policy: str = ""
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    outcome: str = ""
    totals: Totals = Totals(0, 0, 0, 0)
    classes: dict[str, Moved] = field(default_factory=dict)
    settled: dict[str, Moved] = field(default_factory=dict)
    peak_in_mbps: float = 0.0
    peak_out_mbps: float = 0.0
    mean_in_mbps: float = 0.0
    mean_out_mbps: float = 0.0
    resent_segments: int | None = None
    sampled: float = 0.0
    rated: Totals = Totals(0, 0, 0, 0)

    def __post_init__(self) -> None:
        self.sampled = self.sampled or self.began
        self.classes = {name: Moved() for name in (OTHER, *self.class_names)} | self.classes

    def sample(self, totals: Totals, moved: Mapping[int, Moved], now: float) -> None:
        """Takes what the kernel says at `now`; `moved` is by the number of the class, 0 is `OTHER`.

        Without classes only the connections of `moved` count: the rest is what the link has.
        """
        seconds = now - self.sampled
        if seconds >= _SHORTEST_SECONDS:
            received = _mbps(totals.received_bytes - self.rated.received_bytes, seconds)
            sent = _mbps(totals.sent_bytes - self.rated.sent_bytes, seconds)
            self.peak_in_mbps, self.peak_out_mbps = max(self.peak_in_mbps, received), max(self.peak_out_mbps, sent)
            self.sampled, self.rated = now, totals
        self.totals = totals
        lived = max(now - self.began, 1e-3)
        self.mean_in_mbps, self.mean_out_mbps = (_mbps(n, lived) for n in (totals.received_bytes, totals.sent_bytes))
        for number, name in enumerate((OTHER, *self.class_names)):
            self.classes[name] = moved.get(number, Moved()).plus(self.settled.get(name, Moved()))
        if not self.class_names:
            link = Moved(totals.sent_bytes, totals.received_bytes, totals.sent_packets, totals.received_packets)
            self.classes[OTHER] = link._replace(connections=self.classes[OTHER].connections)

    def settle(self, flows: Mapping[Flow, Moved]) -> None:
        """Is told that the kernel has forgotten `flows`, and with them what they have moved."""
        for flow, moved in flows.items():
            if not flow.refused_by:
                name = self.class_names[flow.number - 1] if 0 < flow.number <= len(self.class_names) else OTHER
                self.settled[name] = self.settled.get(name, Moved()).plus(moved)

    def finish(self, outcome: str) -> None:
        """Ends the account; a job too short for a sample has its mean for its peak."""
        self.outcome, self.ended = outcome, time.time()
        self.peak_in_mbps = self.peak_in_mbps or self.mean_in_mbps
        self.peak_out_mbps = self.peak_out_mbps or self.mean_out_mbps

    @property
    def connections(self) -> int:
        """Those that were established, as the kernel has seen them answered."""
        return sum(moved.connections for moved in self.classes.values())

    def by_class(self) -> dict[str, Moved]:
        """What each class has of `totals`, so that together they are all of it.

        Classes are counted in segments, which may be large, and a link with limits in the frames that were made of
        them and were not dropped: the headers and losses are those of the classes by their bytes.
        """
        received = _divided(self.totals.received_bytes, [moved.received_bytes for moved in self.classes.values()])
        sent = _divided(self.totals.sent_bytes, [moved.sent_bytes for moved in self.classes.values()])
        return {
            name: moved._replace(received_bytes=received_bytes, sent_bytes=sent_bytes)
            for (name, moved), received_bytes, sent_bytes in zip(self.classes.items(), received, sent)
        }

    @property
    def internal(self) -> Moved:
        """What moved within the site, where a class says so."""
        found = Moved()
        for name, moved in self.by_class().items():
            if name.lower() in INTERNAL:
                found = found.plus(moved)
        return found

    def message(self) -> dict[str, Any]:
        """For JSON; `Account.of` makes it again."""
        by_class = {"classes": self.classes, "settled": self.settled}
        lists = {part: {name: list(moved) for name, moved in each.items()} for part, each in by_class.items()}
        return {**vars(self), **lists}

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Account:
        """Raises TypeError, ValueError or KeyError for what is no message."""
        classes, settled = (
            {name: Moved(*map(int, moved)) for name, moved in message.get(part, {}).items()}
            for part in ("classes", "settled")
        )
        totals, rated = (Totals(*map(int, message[name])) for name in ("totals", "rated"))
        names = tuple(map(str, message["class_names"]))
        whole = {"totals": totals, "rated": rated, "class_names": names, "classes": classes, "settled": settled}
        return cls(**{**message, **whole})


def _divided(whole: int, parts: list[int]) -> list[int]:
    """Divides `whole` in proportion to `parts`; what is left by rounding, or of no part at all, is the first's."""
    known = sum(parts)
    shares = [whole * part // known if known else 0 for part in parts]
    return [shares[0] + whole - sum(shares), *shares[1:]]


def _mbps(moved_bytes: int, seconds: float) -> float:
    return moved_bytes * 8 / 1e6 / seconds
