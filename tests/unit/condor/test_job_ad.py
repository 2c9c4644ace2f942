from __future__ import annotations

import math
import time

import pytest

from htcondor_vpn.condor.job_ad import Expression, is_finite_number, parse_ad, parse_lines, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1.000000000000000E+01", 10.0),
        ("TRUE", True),
        ("false", False),
        ("undefined", None),
        ('"a \\"b\\" \\\\"', 'a "b" \\'),
    ],
)
def test_literals(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["1 + 1", "Cpus", '"a" + "b"', "real(5)", "{1, 2}", "", "5M", "0x10", "1_000"])
def test_what_is_no_literal(text: str) -> None:
    assert parse_value(text) == Expression(text)
    assert isinstance(parse_value(text), Expression)


def test_special_reals() -> None:
    value = parse_value('real("NaN")')
    assert isinstance(value, float)
    assert math.isnan(value)
    assert parse_value('real("-INF")') == -math.inf
    assert not any(is_finite_number(parse_value(text)) for text in ('real("NaN")', "true", '"5"', "Cpus", "undefined"))


def test_ad() -> None:
    text = 'MyType = "Job"\n\n# comment\n  Requirements = (TARGET.Cpus == 1) && true\r\nA.b=1\n'
    ad = parse_ad(text)
    assert ad == {"mytype": "Job", "requirements": "(TARGET.Cpus == 1) && true", "a.b": 1}


@pytest.mark.parametrize("value", ['"{} x"', '"{}', "a{}b", "1{}"], ids=["text", "open", "word", "number"])
@pytest.mark.parametrize("filling", [" ", "\\", "\t1", "0"], ids=["blanks", "backslashes", "words", "zeros"])
def test_a_long_value_takes_no_long_time(value: str, filling: str) -> None:
    """The owner of one job must not be able to stop the broker, which all jobs share."""
    began = time.process_time()
    parse_ad("A = " + value.format(filling * 1_000_000))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("line", ["no ad", "= 5", "5 = 5", "A == 5", "A =?= 5"])
def test_line_that_is_none(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_ad(f"A = 1\n{line}")


def test_lines_are_parsed_without_their_values() -> None:
    ad = '# a comment\n\nAsked = 5 \nOther = strcat("a", "b")\nASKED = "6"'
    assert parse_lines(ad) == {"asked": '"6"', "other": 'strcat("a", "b")'}
    with pytest.raises(ValueError, match="line 2"):
        parse_lines("A = 1\nno line")
