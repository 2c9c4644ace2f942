"""ClassAd expressions of a policy: compiled once, evaluated as START is, with MY = the slot's ad, TARGET = the job's.

A name without MY or TARGET is looked up in the slot's ad and then in the job's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from htcondor_vpn.condor.job_ad import Expression as NoLiteral
from htcondor_vpn.config_file import printable
from htcondor_vpn.errors import PolicyError
from htcondor_vpn.jobnet.policy.classads import classad2, unknown_function, without_strings
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode, shown
from htcondor_vpn.jobnet.policy.source import Value

_ATTRIBUTE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=")


@dataclass(frozen=True)
class Range:
    """What a number may be: `low` to `high`, or 0 where `zero` is allowed."""

    low: float
    high: float
    zero: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high or (self.zero and value == 0)

    def __str__(self) -> str:
        return f"{'0 or ' if self.zero else ''}between {self.low:g} and {self.high:g}"


class Expression:
    """One value of a policy as a ClassAd expression."""

    def __init__(self, key: str, value: Value, whose: str) -> None:
        """Raises `PolicyError` if it is no expression."""
        self.key, self.text, self.origin, self.whose = key, value.text, value.origin, whose
        try:
            self._tree = classad2.ExprTree(value.text)
            # In parentheses nothing is left over: of `1; x = 2` and `1] x` the library takes the beginning.
            classad2.ExprTree(f"({value.text})")
        except (classad2.ClassAdException, ValueError):  # ValueError: a NUL, or bytes that were no UTF-8
            cause = f"{value.origin}: {key} = {printable(value.text)} is no ClassAd expression"
            raise PolicyError(cause, _hint(value.text)) from None
        unknown = unknown_function(value.text)
        if unknown is not None:
            raise PolicyError(
                f"{value.origin}: {key} = {printable(value.text)}: there is no function {unknown}",
                "HTCondor's manual lists those of ClassAds",
            )

    @property
    def source(self) -> str:
        """For people: whose it is, and where it stands."""
        return f"{self.whose} ({self.origin})"

    def is_constant(self) -> bool:
        """Whether no ad can change it: it names no attribute, and no function of the moment or of chance."""
        names = without_strings(self.text).lower()
        named = any(classad2.ClassAd().externalRefs(self._tree))
        return not named and not re.search(r"\b(time|random|eval)\s*\(", names)

    def value(self, ads: Ads) -> Any:
        """Its value as Python has it; raises `Refusal` where it has none."""
        value = ads.evaluated(self._tree)
        if value is ERROR:
            raise self.refusal("is an error")
        return None if value is UNDEFINED else value

    def refusal(self, says: str) -> Refusal:
        """What a job is told when the policy cannot decide."""
        shown_text = f"{self.key} = {printable(self.text)}"
        return Refusal(SubCode.NOT_DECIDED, f"{self.origin}: {shown_text} (of {self.whose}) {says}")

    def number(self, ads: Ads, allowed: Range) -> float:
        """Its value as a number; raises `Refusal`."""
        value = self.value(ads)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refusal("is undefined" if value is None else f"is {shown(value)}, which is no number")
        if value not in allowed:
            raise self.refusal(f"is {shown(value)}, which is not {allowed}")
        return float(value)

    def string(self, ads: Ads) -> str:
        """Its value as a string that is not empty; raises `Refusal`."""
        value = self.value(ads)
        if type(value) is not str or not value:
            raise self.refusal("is undefined" if value is None else f"is {shown(value)}, which is no text")
        return value


UNDEFINED, ERROR = classad2.Value.Undefined, classad2.Value.Error


class Ads:
    """A job's ad and its slot's."""

    def __init__(self, job_ad: str, machine_ad: str) -> None:
        """Parses them; raises `Refusal` for what is no ad."""
        self.job = _parsed(job_ad, "job")
        self.machine = _parsed(machine_ad, "machine")

    def evaluated(self, tree: classad2.ExprTree) -> Any:
        """The value of an expression, `UNDEFINED` or `ERROR`."""
        try:
            return tree.eval(self.machine, self.job)
        except classad2.ClassAdException:  # it goes too deep, or takes too long
            return ERROR

    def job_value(self, name: str) -> Any:
        """The value of one of the job's attributes, None where there is none."""
        return self._value(f"TARGET.{name}")

    def machine_value(self, name: str) -> Any:
        """The value of one of the slot's attributes, None where there is none."""
        return self._value(f"MY.{name}")

    def _value(self, reference: str) -> Any:
        value = self.evaluated(classad2.ExprTree(reference))
        return None if value is UNDEFINED else NoLiteral("error") if value is ERROR else value


def _parsed(text: str, whose: str) -> classad2.ClassAd:
    """HTCondor's own reader drops a line that it does not understand, and a rule would look in vain for it."""
    try:
        ad = classad2.parseOne(text, classad2.ParserType.Old)
    except (classad2.ClassAdException, UnicodeEncodeError):
        # In whatever encoding a submitter wrote: bytes that are no UTF-8 become question marks.
        ad = classad2.parseOne(text.encode(errors="replace").decode(), classad2.ParserType.Old)
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ATTRIBUTE.match(line)
        if match is None or match[1] not in ad:
            # What is wrong with the slot's ad is no fault of the job's.
            code = SubCode.NOT_AN_AD if whose == "job" else SubCode.NOT_DECIDED
            raise Refusal(code, f"line {number} of the {whose} ad is no attribute: {printable(line, 40)}")
    return ad


def _hint(text: str) -> str:
    if "$(" in text:
        return "macros are HTCondor's configuration's; here is none"
    if re.search(r"(?<![=!<>?])=(?![=?!])", without_strings(text)):
        return "to compare, write == or =?="
    if re.search(r"\b(and|or|not)\b", without_strings(text), re.IGNORECASE):
        return "ClassAds have && || !"
    return "check its quotes, parentheses and operators"
