"""Job ads in HTCondor's old syntax (`Name = value` lines), as hooks get them on stdin and `.job.ad` holds them.

A node may have no ClassAd library, so `parse_ad` reads literals only and says so when it meets anything else.
"""

from __future__ import annotations

import json
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
    return {name: parse_value(value) for name, value in parse_lines(text).items()}


def parse_lines(text: str) -> dict[str, str]:
    """As `parse_ad`, with values for `parse_value`: who needs a few of some hundred need not parse the others."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        match = _LINE.match(line)
        if match is not None:
            found[match[1].lower()] = match[2].strip()
        elif line.strip() and not line.lstrip().startswith("#"):
            raise ValueError(f"line {number} of the job ad is not `Name = value`")
    return found


def old_syntax(text: str) -> str:
    """Turns one ad as HTCondor's tools print it, by -long or by -json, into `Name = value` lines.

    Raises ValueError for JSON that is no ad, and where there is not exactly one ad.
    """
    if text.lstrip()[:1] not in ("[", "{"):
        ads = [lines for lines in re.split(r"\n\s*\n", text) if lines.strip()]
    else:
        found = json.loads(text)
        ads = found if isinstance(found, list) else [found]
    if len(ads) != 1:
        raise ValueError(f"there are {len(ads)} ads where one is expected")
    (ad,) = ads
    if isinstance(ad, str):
        return ad
    if not isinstance(ad, dict):
        raise ValueError("the JSON is no ad")
    return "".join(f"{name} = {_unparsed(value)}\n" for name, value in ad.items())


def _unparsed(value: object) -> str:
    """A value of HTCondor's JSON in ClassAd syntax; an expression is a string `/Expr(…)/` there."""
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        expression = re.fullmatch(r"/Expr\((.*)\)/", value, re.DOTALL)
        return expression[1] if expression else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"{{ {', '.join(map(_unparsed, value))} }}"
    if isinstance(value, dict):
        return f"[ {'; '.join(f'{name} = {_unparsed(each)}' for name, each in value.items())} ]"
    return str(value)


def is_finite_number(value: Literal | Expression) -> bool:
    """Whether a value is an integer or a real other than NaN and infinity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
