"""What one check has found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.Enum):
    """How well a node does in one respect."""

    GOOD = "good"
    #: It works, but not for long, not for many, or less well.
    LIMITED = "limited"
    BAD = "bad"
    #: It cannot be told from here.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """`said` tells what is there or what failed; `ask` what an admin could do about it, in the imperative, or nothing.

    Neither ends in a full stop.
    """

    name: str
    outcome: Outcome
    said: str
    ask: str = ""

    @property
    def works(self) -> bool:
        return self.outcome in (Outcome.GOOD, Outcome.LIMITED)


def good(name: str, said: str) -> Finding:
    return Finding(name, Outcome.GOOD, said)


def limited(name: str, said: str, ask: str = "") -> Finding:
    return Finding(name, Outcome.LIMITED, said, ask)


def bad(name: str, said: str, ask: str = "") -> Finding:
    return Finding(name, Outcome.BAD, said, ask)


def unknown(name: str, said: str) -> Finding:
    return Finding(name, Outcome.UNKNOWN, said)
