"""Finds the first of many rules that matches, without evaluating each: a site may have one for each of 10,000 users.

Rules that begin with `ATTRIBUTE == "text" &&` are found by that text; the others are asked in batches, each of them one
expression inside the ClassAd library. Whatever looks like a match is then judged as if it were alone.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence

from htcondor_vpn.jobnet.policy.classads import classad2, without_strings
from htcondor_vpn.jobnet.policy.expressions import Ads
from htcondor_vpn.jobnet.policy.rules import Rule

_BATCH = 250
_FIRST_TERM = re.compile(
    r'\s*((?:(?:MY|TARGET)\.)?[A-Za-z_]\w*)\s*==\s*"([^"\\]*)"\s*(?:&&|$)', re.IGNORECASE | re.ASCII
)


class Matcher:
    """The rules of a policy in their order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._compared: dict[str, _Compared] = {}
        others = []
        for number, rule in enumerate(rules):
            term = _first_term(rule)
            if term is None:
                others.append(number)
            else:
                attribute, text = term
                self._compared.setdefault(attribute, _Compared(attribute)).add(text, number)
        self._others = self._batches(others)

    def first(self, ads: Ads) -> Rule | None:
        """The first rule that matches, None if none does; raises `Refusal` where one before it cannot be judged."""
        # What has to be looked at next, by the number of its (first) rule: a batch as a whole, or a rule (None).
        heap: list[tuple[int, int, _Batch | None]] = [(batch.numbers[0], 0, batch) for batch in self._others]
        for compared in self._compared.values():
            value = ads.evaluated(compared.tree)
            if type(value) is str:
                heap += [(number, 1, None) for number in compared.by_text.get(value.lower(), ())]
            else:  # with what is no text, `&&` goes on to the next term, which may be an error
                compared.batches = compared.batches or self._batches(compared.numbers)
                heap += [(batch.numbers[0], 0, batch) for batch in compared.batches]
        heapq.heapify(heap)
        while heap:
            number, _, batch = heapq.heappop(heap)
            if batch is None:
                if self._rules[number].matches(ads):
                    return self._rules[number]
            elif ads.evaluated(batch.any) is not False:
                for number in batch.numbers:
                    heapq.heappush(heap, (number, 1, None))
        return None

    def _batches(self, numbers: Sequence[int]) -> list[_Batch]:
        parts = (numbers[at : at + _BATCH] for at in range(0, len(numbers), _BATCH))
        return [_Batch(part, [self._rules[number] for number in part]) for part in parts]


class _Compared:
    """The rules that begin with a comparison of one attribute: their numbers, and the same by the text."""

    def __init__(self, attribute: str) -> None:
        self.tree = classad2.ExprTree(attribute)
        self.numbers: list[int] = []
        self.by_text: dict[str, list[int]] = {}
        self.batches: list[_Batch] = []

    def add(self, text: str, number: int) -> None:
        self.numbers.append(number)
        self.by_text.setdefault(text, []).append(number)


class _Batch:
    """Some rules, and an expression that is false if none of them has to be looked at."""

    def __init__(self, numbers: Sequence[int], rules: Sequence[Rule]) -> None:
        self.numbers = numbers
        # What is undefined does not match. All else but `false` has to be looked at, also what is an error.
        texts = (rule.when.text if rule.when else "true" for rule in rules)
        asked = ", ".join(f"(({text}) ?: false) =!= false" for text in texts)
        self.any = classad2.ExprTree(f"member(true, {{{asked}}})")


def _first_term(rule: Rule) -> tuple[str, str] | None:
    """Attribute and text, in lower case, which the rule needs to be equal; None where its expression is not so simple.

    `==` has no regard to case. An alternative outside of strings could make the rule match without its first term.
    """
    if rule.when is None:
        return None
    match = _FIRST_TERM.match(rule.when.text)
    if match is None or re.search(r"\|\||\?|/\*", without_strings(rule.when.text)):
        return None
    return match[1].lower(), match[2].lower()
