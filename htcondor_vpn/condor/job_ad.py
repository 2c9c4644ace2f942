"""Job ads in HTCondor's old syntax (`Name = value` lines), as hooks get them on stdin and `.job.ad` holds them.

A node may have no ClassAd library, so this reads literals only and says so when it meets anything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Union


class Expression(str):
    """A value that is not a literal; nobody evaluates it here."""


Literal = Union[bool, int, float, str, None]
Ad = Mapping[str, Union[Literal, Expression]]

# A job's owner writes what stands here, and one broker serves all jobs: no pattern may try again from every blank.
_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=(?!\?=|!=|=)(.*)", re.DOTALL)
_INTEGER = re.compile(r"[-+]?[0-9]{1,30}$")
_REAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,6})?$")
_SPECIAL_REAL = re.compile(r'real\(\s*"([-+]?(?:nan|inf|infinity))"\s*\)$', re.IGNORECASE)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"$', re.DOTALL)
_WORDS: Mapping[str, Literal] = {"true": True, "false": False, "undefined": None}


def parse_value(text: str) -> Literal | Expression:
    """Parses one value: a literal, None for `undefined`, or the text itself as an `Expression`."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.match(text):
        return int(text)
    if _REAL.match(text):
        return float(text)
    special = _SPECIAL_REAL.match(text)
    if special:
        return float(special[1])
    string = _STRING.match(text)
    if string:
        return re.sub(r"\\(.)", r"\1", string[1], flags=re.DOTALL)
    return Expression(text)


def parse_ad(text: str) -> dict[str, Literal | Expression]:
    """Parses an ad to names in lower case and values; raises ValueError with the number of a line that is none."""
    found: dict[str, Literal | Expression] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"line {number} of the job ad is not `Name = value`")
        found[match[1].lower()] = parse_value(match[2].strip())
    return found


def is_finite_number(value: Literal | Expression) -> bool:
    """Whether a value is an integer or a real other than NaN and infinity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
