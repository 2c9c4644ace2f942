"""The ClassAd library with HTCondor's own functions, which `classad2` alone has not (`stringListMember`, …).

They come with `htcondor2`, once that has read a configuration. It gets an empty one: HTCondor's could run commands and
load libraries, and a policy shall mean the same on every node. Both modules together take 17 MB and 50 ms, and are not
on every node: only what evaluates imports this one.
"""

from __future__ import annotations

import os
import re
from functools import cache

import classad2

__all__ = ["classad2", "unknown_function", "without_strings"]

_CONFIG = "CONDOR_CONFIG"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(", re.ASCII)

#: Each function of the library has a value, or none that is defined, for one of these arguments.
_ARGUMENTS = (
    "", "x", "undefined", "1", '"a"', '"a@b"', "{1}", '{"a"}', "1, 1", '"a", "a"', '"a", 1', '"a", {"a"}', '{"a"}, "a"',
    "true, 1, 2", '"a", "a", "a"', '"a", "a", "a", "a"', "[a = 1]", "1, {1}", "time()", '"2020-01-01T00:00:00Z"',
    '"<", {1}, 1', "undefined, {[a = 1]}", "interval(1)", 'absTime("2020-01-01T00:00:00Z")', '"1.3", "1.2", "1.4"',
)  # fmt: skip


def _add_functions() -> None:
    before = os.environ.get(_CONFIG)
    os.environ[_CONFIG] = os.devnull
    try:
        import htcondor2  # noqa: F401
    finally:
        del os.environ[_CONFIG]
        if before is not None:
            os.environ[_CONFIG] = before
    if classad2.ExprTree('stringListMember("a", "a")').eval() is not True:
        raise ImportError("they have no function stringListMember")


_add_functions()


def without_strings(text: str) -> str:
    """The text of an expression with each string emptied."""
    return _STRING.sub('""', text)


def unknown_function(text: str) -> str | None:
    """The first function in an expression's text that the library does not have."""
    return next((name for name in _CALL.findall(without_strings(text)) if not _is_known(name.lower())), None)


@cache
def _is_known(name: str) -> bool:
    """The library has no list of its functions; one that it lacks is an error whatever the arguments."""
    return any(_has_value(classad2.ExprTree(f"{name}({arguments})")) for arguments in _ARGUMENTS)


def _has_value(tree: classad2.ExprTree) -> bool:
    try:
        return tree.eval() is not classad2.Value.Error
    except classad2.ClassAdException:
        return False
