"""Why a job does not run: a code for HTCondor, and a sentence for the job's owner.

HTCondor's prepare hook takes `HookStatusCode` 1 to 299 for a reason to hold the job (hold code 19, ours is the
sub-code), so that its owner sees why; with 300 and more the job goes back to the queue and may run elsewhere.
"""

from __future__ import annotations

from enum import IntEnum


class SubCode(IntEnum):
    """`HoldReasonSubCode` of a held job (1-299), or why it went back to the queue (300 and more)."""

    NOT_A_NUMBER = 1
    NOT_POSITIVE = 2
    TOO_LOW = 3
    TOO_HIGH = 4
    NOT_AN_AD = 5
    NOT_EXECUTABLE = 6
    NOT_A_BOOLEAN = 7
    NETWORK_NOT_ALLOWED = 8
    RECORDER_NOT_ALLOWED = 9
    AD_TOO_COMPLEX = 10
    HELD_BY_RULE = 11
    RUNS_OUTSIDE = 30
    BROKER_UNREACHABLE = 300
    TUNNEL_NOT_UP = 301
    NOT_DECIDED = 302
    NAME_NOT_RESOLVED = 303
    NETWORK_NOT_HERE = 304
    SENT_AWAY_BY_RULE = 305


class Refusal(Exception):
    """The job cannot run so: `sub_code` and a message for its owner."""

    def __init__(self, sub_code: SubCode, message: str) -> None:
        super().__init__(message)
        self.sub_code, self.message = sub_code, message


def shown(value: object) -> str:
    """A value as it is shown to a job's owner: short, and on one line."""
    text = f'"{value}"' if type(value) is str else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 60 else text[:57] + "..."
