"""A policy's sections as what they mean: classes, networks, and rules with their expressions compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from htcondor_vpn.config_file import Origin, printable
from htcondor_vpn.errors import PolicyError
from htcondor_vpn.jobnet.policy.decision import HOST, NONE, TUNNEL
from htcondor_vpn.jobnet.policy.destinations import Destination, parse_destination
from htcondor_vpn.jobnet.policy.expressions import Ads, Expression, Range
from htcondor_vpn.jobnet.policy.granting import (
    ALWAYS,
    LOWEST_MBPS,
    NEVER,
    NO_DESTINATIONS,
    ON_REQUEST,
    NamedNetwork,
    Offer,
    Sourced,
    Terms,
)
from htcondor_vpn.jobnet.policy.refusal import Refusal
from htcondor_vpn.jobnet.policy.source import CLASS, NETWORK, NUMBERS, RULE, Section, Source, Value

HIGHEST_MBPS = 1e6
_DEFAULT = "the default"


_RATE, _RATE_OR_NONE, _WEIGHT = (
    Range(LOWEST_MBPS, HIGHEST_MBPS), Range(LOWEST_MBPS, HIGHEST_MBPS, zero=True), Range(0.001, 1e6)
)  # fmt: skip


@dataclass(frozen=True)
class Number:
    """One number of a rule, and what it may be."""

    expression: Expression
    allowed: Range

    @classmethod
    def of(cls, key: str, expression: Expression) -> Number:
        """A ceiling that is reckoned may not come to 0, which takes it away: a job could see to that by its ad."""
        if key == "weight":
            return cls(expression, _WEIGHT)
        none_is_safe = key.startswith("guaranteed_") or expression.is_constant()
        return cls(expression, _RATE_OR_NONE if none_is_safe else _RATE)

    def value(self, ads: Ads) -> Sourced:
        """Raises `Refusal`."""
        return Sourced(self.expression.number(ads, self.allowed), self.expression.source)


@dataclass(frozen=True)
class Rule:
    """One rule. What it does not say is None, or not in `numbers`; `hold` and `requeue` are for the job's owner."""

    name: str
    origin: Origin
    when: Expression | None
    networks: Sourced
    numbers: Mapping[str, Number]
    group: Expression | None
    allowed: Sourced
    denied: Sourced
    recorder: Sourced
    hold: str | None
    requeue: str | None

    def matches(self, ads: Ads) -> bool:
        """Whether it decides; what is undefined does not match. Raises `Refusal` where that cannot be told."""
        if self.when is None:
            return True
        value = self.when.value(ads)
        if value is not None and not isinstance(value, (bool, int, float)):
            raise self.when.refusal("is neither true nor false")
        return bool(value)

    def number(self, key: str, ads: Ads) -> Sourced | None:
        """One of its numbers, None if it does not say; raises `Refusal`."""
        number = self.numbers.get(key)
        return None if number is None else number.value(ads)

    def offer(self, direction: str, ads: Ads) -> Offer:
        """What it offers for "up" or "down"; raises `Refusal`."""
        keys = f"{direction}_mbps", f"max_{direction}_mbps", f"guaranteed_{direction}_mbps"
        return Offer(*(self.number(key, ads) for key in keys))


@dataclass
class Rules:
    """A whole policy."""

    rules: list[Rule] = field(default_factory=list)
    networks: dict[str, NamedNetwork] = field(default_factory=dict)
    classes: dict[str, tuple[Destination, ...]] = field(default_factory=dict)

    def terms(self, rule: Rule, ads: Ads) -> Terms:
        """What `rule` offers to this job; raises `Refusal`."""
        return Terms(
            rule=rule.name,
            networks=rule.networks,
            named=self.networks,
            up=rule.offer("up", ads),
            down=rule.offer("down", ads),
            weight=rule.number("weight", ads),
            group=None if rule.group is None else Sourced(rule.group.string(ads), rule.group.source),
            allowed=rule.allowed,
            denied=rule.denied,
            recorder=rule.recorder,
            classes=self.classes,
        )


def compile_rules(source: Source, problems: list[PolicyError]) -> Rules:
    """Compiles a policy, and adds what is wrong with it to `problems`; what is wrong is left out."""
    return _Compiler(problems).compiled(source)


class _Compiler:
    def __init__(self, problems: list[PolicyError]) -> None:
        self._problems = problems
        self._rules = Rules()
        self._constants = Ads("", "")

    def compiled(self, source: Source) -> Rules:
        for section in source.of_kind(CLASS):
            self._rules.classes[section.name] = self._destinations(section, "destinations").value
        for section in source.of_kind(NETWORK):
            through = self._word(section, "through", (TUNNEL, HOST, NONE), TUNNEL)
            allowed, denied = self._destinations(section, "allow"), self._destinations(section, "deny")
            self._rules.networks[section.name] = NamedNetwork(through.value, allowed, denied)
        for section in source.of_kind(RULE):
            self._rules.rules.append(self._rule(section))
        return self._rules

    def _rule(self, section: Section) -> Rule:
        numbers = {}
        for key in NUMBERS:
            expression = self._expression(section, key)
            if expression is not None:
                numbers[key] = number = Number.of(key, expression)
                if expression.is_constant():
                    self._check(lambda n=number: n.value(self._constants))
        group = self._expression(section, "group")
        if group is not None and group.is_constant():
            self._check(lambda: group.string(self._constants))
        rule = Rule(
            name=section.name,
            origin=section.origin,
            when=self._expression(section, "when"),
            networks=self._networks(section),
            numbers=numbers,
            group=group,
            allowed=self._destinations(section, "allow"),
            denied=self._destinations(section, "deny"),
            recorder=self._word(section, "flight_recorder", (ALWAYS, NEVER, ON_REQUEST), ON_REQUEST),
            hold=self._text(section, "hold"),
            requeue=self._text(section, "requeue"),
        )
        if rule.when is not None and rule.when.is_constant():
            self._check(lambda: rule.matches(self._constants))
        self._contradictions(section, rule)
        return rule

    def _contradictions(self, section: Section, rule: Rule) -> None:
        if rule.hold is not None and rule.requeue is not None:
            self._wrong(section.values["requeue"], "requeue and hold are both there", "choose one of them")
        for name in rule.networks.value:
            network = self._rules.networks.get(name)
            if rule.allowed.value and network is not None and network.allowed.value:
                self._wrong(
                    section.values["allow"],
                    f"both {section} and [network {name}] say what is allowed",
                    "say it in one of them",
                )

    def _check(self, evaluate: object) -> None:
        """What no ad can change is judged now, and not at the first job."""
        assert callable(evaluate)
        try:
            evaluate()
        except Refusal as refusal:
            self._problems.append(PolicyError(refusal.message, "correct it"))

    def _wrong(self, value: Value, says: str, remedy: str) -> None:
        self._problems.append(PolicyError(f"{value.origin}: {says}", remedy))

    def _expression(self, section: Section, key: str) -> Expression | None:
        value = section.values.get(key)
        if value is None:
            return None
        try:
            return Expression(key, value, f"{section.kind} {section.name}")
        except PolicyError as error:
            self._problems.append(error)
            return None

    @staticmethod
    def _text(section: Section, key: str) -> str | None:
        value = section.values.get(key)
        return None if value is None else value.text.strip('"')

    def _word(self, section: Section, key: str, words: tuple[str, ...], default: str) -> Sourced:
        value = section.values.get(key)
        if value is None:
            return Sourced(default, _DEFAULT)
        if value.text.lower() not in words:
            self._wrong(value, f"{key} = {printable(value.text)} is none of {', '.join(words)}", "write one of them")
            return Sourced(default, _DEFAULT)
        return Sourced(value.text.lower(), _source(section, value))

    def _networks(self, section: Section) -> Sourced:
        value = section.values.get("network")
        if value is None:
            return Sourced((TUNNEL,), _DEFAULT)
        known = {name.lower(): name for name in (TUNNEL, HOST, NONE, *self._rules.networks)}
        names = []
        for word in value.text.replace(",", " ").split():
            name = known.get(word.strip('"').lower())
            if name is None:
                self._wrong(value, f"there is no network {printable(word)}", f"there are {', '.join(known.values())}")
            elif name not in names:
                names.append(name)
        return Sourced(tuple(names) or (NONE,), _source(section, value))

    def _destinations(self, section: Section, key: str) -> Sourced:
        """A tuple of destinations."""
        value = section.values.get(key)
        found: dict[Destination, None] = {}
        if value is None:
            return NO_DESTINATIONS
        for entry in value.text.split(","):
            words = entry.split()
            if words[:1] == ["class"] and len(words) == 2 and section.kind != CLASS:
                if words[1] not in self._rules.classes:
                    classes = ", ".join(self._rules.classes) or "none"
                    self._wrong(value, f"there is no class {printable(words[1])}", f"there is {classes}")
                found.update(dict.fromkeys(self._rules.classes.get(words[1], ())))
                continue
            try:
                found[parse_destination(entry)] = None
            except ValueError as error:
                remedy = "write NETWORK or NAME, then tcp or udp, then port N[-M]"
                self._wrong(value, f"{key}: {printable(entry.strip())!r} {error}", remedy)
        return Sourced(tuple(found), _source(section, value))


def _source(section: Section, value: Value) -> str:
    return f"{section.kind} {section.name} ({value.origin})"
