"""From what a rule offers and what a job asks for to what the job gets: never more than was offered.

A job asks by attributes of its ad. A request that makes no sense, or goes beyond the offer, is a `Refusal`: the job's
owner shall see it, and not wonder about a slow job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from htcondor_vpn.condor.job_ad import is_finite_number
from htcondor_vpn.jobnet.policy.decision import KNOBS, NONE, TUNNEL, Decision, Share
from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode, shown
from htcondor_vpn.knobs import PREFIX
from htcondor_vpn.settings import Settings

#: What a job asks by: rates in Mbit/s (for both directions, or one), a network's name, whether its recorder runs.
BANDWIDTH, NETWORK, RECORDER = "VpnBandwidthMbps", "VpnNetwork", "VpnFlightRecorder"
RATES: Mapping[str, str] = {"up": "VpnUpMbps", "down": "VpnDownMbps"}

#: Below this even the packets that open a connection take seconds.
LOWEST_MBPS = 0.1

#: When a job's flight recorder runs.
ALWAYS, NEVER, ON_REQUEST = "always", "never", "on-request"

#: An attribute's value by its name; None where there is none.
Lookup = Callable[[str], Any]


class Sourced(NamedTuple):
    """A value and where it comes from, for people."""

    value: Any
    source: str


@dataclass(frozen=True)
class Offer:
    """What a rule offers for one direction, in Mbit/s; what it does not say is None, and 0 is no limit.

    `ceiling` is what a job gets that does not ask, `most` what it may ask for.
    """

    ceiling: Sourced | None = None
    most: Sourced | None = None
    guaranteed: Sourced | None = None


NO_DESTINATIONS = Sourced((), "the default")

#: Where no rule decides: a job may do without a network.
NO_RULES_NETWORKS = Sourced((TUNNEL, NONE), "the default")


class NamedNetwork(NamedTuple):
    """A network that a policy defines: which of those that always exist it is, and where it leads."""

    through: str
    allowed: Sourced = NO_DESTINATIONS
    denied: Sourced = NO_DESTINATIONS

    def reach(self, allowed: Sourced, denied: Sourced) -> tuple[Sourced, Sourced]:
        """What is allowed and denied in this network to a job whose rule says this; all are tuples of destinations."""
        if denied.value and self.denied.value:
            denied = Sourced((*denied.value, *self.denied.value), f"{denied.source}, {self.denied.source}")
        return allowed if allowed.value else self.allowed, denied if denied.value else self.denied


@dataclass(frozen=True)
class Terms:
    """What a rule offers. `networks` are those that a job may ask for, the first is the one it gets otherwise."""

    rule: str = KNOBS
    networks: Sourced = Sourced((TUNNEL,), "the default")
    named: Mapping[str, NamedNetwork] = field(default_factory=dict)
    up: Offer = Offer()
    down: Offer = Offer()
    weight: Sourced | None = None
    group: Sourced | None = None
    allowed: Sourced = NO_DESTINATIONS
    denied: Sourced = NO_DESTINATIONS
    recorder: Sourced = Sourced(ON_REQUEST, "the default")
    classes: Mapping[str, tuple[Destination, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Granted:
    """A decision, and where each of its values comes from."""

    decision: Decision
    sources: Mapping[str, str]


class Grant:
    """One job's case: `job` and `machine` look attributes of the two ads up."""

    def __init__(self, settings: Settings, terms: Terms, job: Lookup, machine: Lookup) -> None:
        self._settings, self._terms, self._job, self._machine = settings, terms, job, machine
        self._sources: dict[str, str] = {}

    def granted(self) -> Granted:
        """Decides; raises `Refusal`."""
        terms = self._terms
        name = self._network()
        network = terms.named.get(name, NamedNetwork(name))
        allowed, denied = network.reach(terms.allowed, terms.denied)
        decision = Decision(
            rule=terms.rule,
            network=name,
            through=network.through,
            up=self._share("up", terms.up),
            down=self._share("down", terms.down),
            weight=self._weight(),
            group=self._group(),
            allowed=self._took("allowed", *allowed),
            denied=self._took("denied", *denied),
            recorded=self._recorded(),
            classes=terms.classes,
        )
        return Granted(decision, self._sources)

    def _took(self, key: str, value: Any, source: str) -> Any:
        self._sources[key] = source
        return value

    def _knob(self, name: str) -> Sourced:
        origin = self._settings.origins.get(PREFIX + name)
        return Sourced(self._settings.values[PREFIX + name], f"{PREFIX}{name} ({origin or 'the default'})")

    # Rates

    def _share(self, direction: str, offer: Offer) -> Share:
        default, most = self._limits(direction, offer)
        asked_by = RATES[direction] if self._job(RATES[direction]) is not None else BANDWIDTH
        asked = self._job(asked_by)
        ceiling = default if asked is None else Sourced(_asked_rate(asked_by, asked, most), f"the job's {asked_by}")
        link = self._knob(f"{direction.upper()}_MBPS")
        if link.value and ceiling.value > link.value:
            ceiling = Sourced(link.value, f"{link.source}: all that there is")
        guaranteed = offer.guaranteed or Sourced(0.0, "the default")
        for limit in (ceiling, link):
            if limit.value and guaranteed.value > limit.value:
                guaranteed = Sourced(limit.value, f"the ceiling; {guaranteed.source} says more")
        return Share(
            self._took(f"{direction}.guaranteed_mbps", guaranteed.value, guaranteed.source),
            self._took(f"{direction}.ceiling_mbps", ceiling.value, ceiling.source),
        )

    def _limits(self, direction: str, offer: Offer) -> tuple[Sourced, Sourced]:
        """What a job gets that does not ask, and the most it may ask for."""
        default = offer.ceiling or self._knob(f"JOB_{direction.upper()}_MBPS")
        most = offer.most or offer.ceiling
        if most is None or (offer.most is None and not most.value):
            return default, self._knob("JOB_MAX_MBPS")
        if most.value and not 0 < default.value <= most.value:
            return most, most
        return default, most

    # The rest

    def _network(self) -> str:
        names, asked = self._terms.networks.value, self._job(NETWORK)
        if asked is None:
            return str(self._took("network", names[0], self._terms.networks.source))
        by_name = {name.lower(): name for name in names}
        if type(asked) is not str or asked.lower() not in by_name:
            allowed = " or ".join(f'"{name}"' for name in names)
            raise Refusal(SubCode.NETWORK_NOT_ALLOWED, f"{NETWORK} is {shown(asked)}; this job may have {allowed}")
        return str(self._took("network", by_name[asked.lower()], f"the job's {NETWORK}"))

    def _weight(self) -> float:
        """The rule's, else the slot's cpus: by the startd's ad, by what it wrote into the job's, or as requested."""
        if self._terms.weight is not None:
            return float(self._took("weight", *self._terms.weight))
        found = {
            "the slot's Cpus": self._machine("Cpus"),
            "the job's CpusProvisioned": self._job("CpusProvisioned"),
            "the job's RequestCpus": self._job("RequestCpus"),
        }
        for source, value in found.items():
            if is_finite_number(value) and float(value) > 0:
                return float(self._took("weight", value, source))
        return float(self._took("weight", 1.0, "the default"))

    def _group(self) -> str:
        """The rule's, else the accounting group, else the user."""
        if self._terms.group is not None:
            return str(self._took("group", *self._terms.group))
        for name in ("AcctGroup", "User", "Owner"):
            value = self._job(name)
            if type(value) is str and value:
                return str(self._took("group", value, f"the job's {name}"))
        return str(self._took("group", "", "the default"))

    def _recorded(self) -> bool:
        mode, asked = self._terms.recorder.value, self._job(RECORDER)
        if asked is not None and not isinstance(asked, bool):
            raise Refusal(SubCode.NOT_A_BOOLEAN, f"{RECORDER} is {shown(asked)}; it must be true or false")
        if asked and mode == NEVER:
            raise Refusal(SubCode.RECORDER_NOT_ALLOWED, f"{RECORDER} is true; this job may not have a flight recorder")
        if mode != ON_REQUEST or asked is None:
            return bool(self._took("recorded", mode == ALWAYS, self._terms.recorder.source))
        return bool(self._took("recorded", asked, f"the job's {RECORDER}"))


def _asked_rate(name: str, asked: Any, most: Sourced) -> float:
    maximum = most.value or math.inf
    allowed = f"a number of Mbit/s from {LOWEST_MBPS:g}" + (f" to {maximum:g}" if math.isfinite(maximum) else " on")
    if not is_finite_number(asked):
        raise Refusal(SubCode.NOT_A_NUMBER, f"{name} is {shown(asked)}; it must be {allowed}")
    rate = float(asked)
    if rate <= 0:
        raise Refusal(SubCode.NOT_POSITIVE, f"{name} is {shown(asked)}; it must be {allowed}")
    if rate < LOWEST_MBPS:
        raise Refusal(SubCode.TOO_LOW, f"{name} is {shown(asked)}; it must be {allowed}")
    if rate > maximum:
        raise Refusal(SubCode.TOO_HIGH, f"{name} is {shown(asked)}; this job may have at most {maximum:g} Mbit/s")
    return rate
