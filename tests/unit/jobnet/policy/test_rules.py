from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_source import LINES

classad2 = pytest.importorskip("classad2", reason="a policy's expressions need HTCondor's Python bindings")

from htcondor_vpn.errors import PolicyError  # noqa: E402
from htcondor_vpn.jobnet.policy.rules import Rules, compile_rules  # noqa: E402
from htcondor_vpn.jobnet.policy.source import parse_source  # noqa: E402


def compiled(text: str) -> tuple[Rules, list[str]]:
    problems: list[PolicyError] = []
    rules = compile_rules(parse_source(text, "policy", problems), problems)
    return rules, [str(problem) for problem in problems]


def test_destinations_of_classes_are_used_by_name() -> None:
    rules, problems = compiled(
        "[class near]\ndestinations = 10.0.0.0/8, a.example.org tcp port 80\n"
        "[rule a]\nallow = class near, 192.0.2.0/24 udp\n"
    )
    assert problems == []
    assert [str(each) for each in rules.rules[0].allowed.value] == [
        "10.0.0.0/8",
        "a.example.org tcp port 80",
        "192.0.2.0/24 udp",
    ]
    assert rules.rules[0].allowed.source == "rule a (policy:4)"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("when = TARGET.Owner = 1", "when = TARGET.Owner = 1 is no ClassAd expression: to compare, write =="),
        ("when = $(X)", "is no ClassAd expression: macros are HTCondor's"),
        ("when = a and b", "is no ClassAd expression: ClassAds have &&"),
        ("when = (a", "is no ClassAd expression: check its quotes"),
        ("when = a; b = 2", "is no ClassAd expression"),
        ("when = a] b", "is no ClassAd expression"),
        ("when = a) || (b", "is no ClassAd expression"),
        ('when = "yes"', "is neither true nor false"),
        ("when = 1/0", "is an error"),
        ('when = stringListMemer(TARGET.Owner, "a")', "there is no function stringListMemer: HTCondor's manual"),
        ("up_mbps = -1", "is -1, which is not 0 or between 0.1 and 1e"),
        ("down_mbps = 0.01", "is 0.01, which is not 0 or between"),
        ('max_up_mbps = real("NaN")', "is nan, which is not 0 or between"),
        ('guaranteed_up_mbps = real("INF")', "is inf, which is not 0 or between"),
        ("up_mbps = 1e400", "is inf, which is not 0 or between"),
        ("up_mbps = true", "is True, which is no number"),
        ('up_mbps = "10"', 'is "10", which is no number'),
        ("up_mbps = undefined", "is undefined"),
        ("weight = 0", "is 0, which is not between 0.001"),
        ("group = 5", "is 5, which is no text"),
        ("network = tunel", "there is no network tunel: there are tunnel, host, none, quiet"),
        ("allow = class nowhere", "there is no class nowhere: there is near"),
        ("allow = 10.0.0.0/99", "allow: '10.0.0.0/99' has '10.0.0.0/99', which is no network"),
        ("deny = example.org port 70000", "from 1 to 65535"),
        ("deny = 10.0.0.0/8,, ::/0", "neither a network nor a host's name"),
        ("flight_recorder = sometimes", "is none of always, never, on-request"),
        ("hold = a\nrequeue = b", "requeue and hold are both there"),
        ("network = quiet\nallow = ::/0", r"both \[rule a\] and \[network quiet\] say what is allowed"),
    ],
)
def test_mistake_is_named_with_its_line(rule: str, says: str) -> None:
    _, problems = compiled(
        "[class near]\ndestinations = 10.0.0.0/8\n"
        f"[network quiet]\nthrough = tunnel\nallow = class near\n[rule a]\n{rule}"
    )
    (problem,) = problems
    assert re.match(r"policy:[78]: ", problem)
    assert re.search(says, problem), problem


@given(st.lists(LINES, max_size=12).map("\n".join))
def test_any_text_is_a_policy_or_its_lines_are_named(text: str) -> None:
    _, problems = compiled(text)
    assert all(re.match(r"policy:[1-9][0-9]*: ", problem) for problem in problems)
    assert all("\n" not in problem for problem in problems)


VALUES = st.one_of(
    st.text(max_size=30), st.sampled_from(["1/0", "-1", "{", "TARGET.X", "time()", "a.b.c", "MY.x ?: 1"])
)


@given(st.dictionaries(st.sampled_from(["when", "up_mbps", "weight", "group", "allow", "network"]), VALUES, max_size=3))
def test_any_value_is_understood_or_its_line_is_named(values: dict[str, str]) -> None:
    lines = [f"{key} = {' '.join(value.split())}" for key, value in values.items()]
    _, problems = compiled("\n".join(["[rule a]", *lines]))
    assert all(re.match(r"policy:[1-9][0-9]*: ", problem) for problem in problems)
