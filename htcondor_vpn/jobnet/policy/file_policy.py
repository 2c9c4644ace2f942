"""Decides by the rules of a policy file: the first that matches decides, and the knobs where none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from htcondor_vpn.jobnet.policy.decision import KNOBS, Decision
from htcondor_vpn.jobnet.policy.expressions import Ads
from htcondor_vpn.jobnet.policy.granting import NO_DESTINATIONS, NO_RULES_NETWORKS, Grant, Granted, NamedNetwork, Terms
from htcondor_vpn.jobnet.policy.matching import Matcher
from htcondor_vpn.jobnet.policy.records import decision_of
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.jobnet.policy.rules import Rule, Rules
from htcondor_vpn.settings import Settings


class FilePolicy:
    """A policy file's rules, ready to decide."""

    def __init__(self, rules: Rules, settings: Settings) -> None:
        self._rules, self._settings = rules, settings
        self._matcher = Matcher(rules.rules)
        self._by_name = {rule.name: rule for rule in rules.rules}

    def granted(self, job_ad: str, machine_ad: str) -> Granted:
        """Decides what a job gets, of two ads in HTCondor's old syntax; raises `Refusal`."""
        ads = Ads(job_ad, machine_ad)
        terms = self._terms(self._matcher.first(ads), ads)
        return Grant(self._settings, terms, ads.job_value, ads.machine_value).granted()

    def restored(self, record: dict[str, Any]) -> Decision:
        """The decision that `records.record_of` made a record of; raises LookupError if its rule is none of ours."""
        decision = decision_of(record)
        rule = None if decision.rule == KNOBS else self._by_name[decision.rule]
        network = self._rules.networks.get(decision.network, NamedNetwork(decision.network))
        none = NO_DESTINATIONS, NO_DESTINATIONS
        allowed, denied = network.reach(*((rule.allowed, rule.denied) if rule else none))
        return replace(decision, allowed=allowed.value, denied=denied.value, classes=self._rules.classes)

    def asked(self, job_ad: str, machine_ad: str) -> Iterator[tuple[Rule, object]]:
        """The rules up to the first that matches, each with the value of its expression (None: undefined).

        Raises `Refusal` as `granted` does.
        """
        ads = Ads(job_ad, machine_ad)
        for rule in self._rules.rules:
            matches = rule.matches(ads)
            yield rule, True if rule.when is None else rule.when.value(ads)
            if matches:
                return

    def _terms(self, rule: Rule | None, ads: Ads) -> Terms:
        if rule is None:
            return Terms(networks=NO_RULES_NETWORKS, classes=self._rules.classes)
        if rule.hold is not None:
            raise Refusal(SubCode.HELD_BY_RULE, f"{rule.hold} (rule {rule.name})")
        if rule.requeue is not None:
            raise Refusal(SubCode.SENT_AWAY_BY_RULE, f"{rule.requeue} (rule {rule.name})")
        return self._rules.terms(rule, ads)
