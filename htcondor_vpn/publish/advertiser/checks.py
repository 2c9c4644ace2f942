"""Checks of what was read: each returns a field's value, or raises ValueError that names the field."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_INTEGER = 2**63 - 1  # a ClassAd's integers have 64 bits

Fields = dict[str, Any]


def checked_integer(document: Fields, name: str, low: int, high: int, default: int | None = None) -> int:
    value = document.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is not a whole number from {low} to {high}")
    return value


def checked_number(document: Fields, name: str, low: float, high: float, *, optional: bool = False) -> Any:
    value: Any = document.get(name)
    if value is None and optional:
        return None
    if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
        raise ValueError(f"{name} is not a number from {low:g} to {high:g}")
    return value


def checked_word(document: Fields, name: str, words: tuple[str, ...], default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} is none of {', '.join(words)}")
    return value


def checked_text(document: Fields, name: str, pattern: re.Pattern[str]) -> str:
    value = document.get(name)
    if not isinstance(value, str) or (value and not pattern.fullmatch(value)):
        raise ValueError(f"{name} is not what it should be")
    return value
