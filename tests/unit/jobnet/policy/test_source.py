from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.errors import PolicyError
from htcondor_vpn.jobnet.policy.source import RULE, SECTIONS, Source, parse_source


def parsed(text: str) -> tuple[Source, list[str]]:
    problems: list[PolicyError] = []
    return parse_source(text, "policy", problems), [str(problem) for problem in problems]


def test_sections_and_where_their_values_stand() -> None:
    source, problems = parsed(
        '# ours\n\n[class campus]\ndestinations = 10.0.0.0/8\n[ Rule big ]\nWhen = TARGET.Owner == \\\n   "a#b"\n'
    )
    assert problems == []
    campus, big = source.sections
    assert (str(campus), campus.origin.line) == ("[class campus]", 3)
    assert big.kind == RULE
    assert big.values["when"].text == 'TARGET.Owner == "a#b"'
    assert str(big.values["when"].origin) == "policy:6"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("up_mbps = 1", r"policy:1: `up_mbps = 1` stands before any section: begin with \[rule NAME\]"),
        ("[rule a]\n\nupmbps = 1", r"policy:3: upmbps is no key of \[rule a\]: did you mean up_mbps\?"),
        ("[rule a]\nxyz = 1", "policy:2: xyz is no key of .*: it has when, network, up_mbps"),
        ("[rule a]\nwhen", "policy:2: `when` is neither a section nor a value"),
        ("[rule a]\nwhen == 1", "policy:2: `when == 1` is neither a section nor a value"),
        ("[rule a]\nwhen =", "policy:2: when has no value"),
        ("[rule a]\nwhen = 1\nWHEN = 2", r"policy:3: when is there twice in \[rule a\]: the first is policy:2"),
        ("[rule a]\n[rule A]", r"policy:2: \[rule A\] is there twice: the first stands at policy:1"),
        ("[rules a]", r"policy:1: `\[rules a\]` begins no section: write \[class NAME\], \[network NAME\], \[rule"),
        ("[rule]", r"policy:1: `\[rule\]` begins no section"),
        ("[rule a b]", "policy:1: 'a b' is no name of a rule"),
        ("[rule knobs]", "policy:1: the rule knobs exists already"),
        ("[network tunnel]", "policy:1: the network tunnel exists already"),
        ("[class other]\ndestinations = ::/0", "policy:1: the class other exists already"),
        ("[class a]\n[rule b]", r"policy:1: \[class a\] lacks destinations"),
        ("[network a]", r"policy:1: \[network a\] lacks through"),
        ("[rule a]\nwhen = 1 \\\n# comment\n", "policy:2: the value is not complete"),
    ],
)
def test_mistake_is_named_with_its_line(text: str, says: str) -> None:
    _, problems = parsed(text)
    assert re.match(says, problems[0]), problems


def test_every_mistake_is_named() -> None:
    _, problems = parsed("[rule a]\nx = 1\ny = 2\n[rule a]\nz = 3\n[rule b]\nz = 3\n")
    assert [problem.split(":")[1] for problem in problems] == ["2", "3", "4", "7"]


KEYS = sorted({key for keys in SECTIONS.values() for key in keys})
LINES = st.one_of(
    st.text(max_size=40),
    st.builds("[{} {}]".format, st.sampled_from([*SECTIONS, "rules", ""]), st.text("abC.-_ ]", max_size=8)),
    st.builds("{} = {}".format, st.sampled_from([*KEYS, "wen"]), st.text(max_size=20)),
)


@given(st.lists(LINES, max_size=12).map("\n".join))
def test_any_text_is_a_policy_or_its_lines_are_named(text: str) -> None:
    source, problems = parsed(text)
    assert all(re.match(r"policy:[1-9][0-9]*: ", problem) for problem in problems)
    assert all(problem.isprintable() for problem in problems)
    for section in source.sections:
        assert set(section.values) <= set(SECTIONS[section.kind])
