"""What is printed, and when: the tunnel's ad, and one for the job in each slot."""

from __future__ import annotations

import math
from typing import Any

from htcondor_vpn.publish.advertiser.attributes import ATTRIBUTES, JOB_ATTRIBUTES, advertised, literal
from htcondor_vpn.publish.advertiser.checks import Fields

REFRESH_SECONDS = 10.0

#: What ends an ad: the startd sends it with its next update, or at once.
IN_TIME = "-\n"
AT_ONCE = "- update:true\n"


def advertisement(fields: Fields) -> str:
    """Returns the lines of one ad, without the line that ends it."""
    values = advertised(fields)
    return "".join(f"{name} = {literal(type_, values[name])}\n" for name, _, type_, _, _ in ATTRIBUTES)


def urgent(fields: Fields) -> tuple[Any, ...]:
    """What the pool must know at once when it changes: all but the numbers' sizes."""
    values = advertised(fields)
    return tuple(
        values[name] is not None if type_ == "real" or unit == "bytes" else values[name]
        for name, _, type_, unit, _ in ATTRIBUTES
    )


class Advertiser:
    """Decides what is to be printed, and when; knows nothing of files, pipes or clocks."""

    def __init__(self) -> None:
        self._told: tuple[Any, ...] | None = None
        self._printed = ""
        self._when = -math.inf
        self._last: Fields | None = None
        self._waits = False

    def due(self, fields: Fields, now: float) -> str:
        """Returns what to print at `now` (a clock that only goes forward, s), or "". `fields` are not changed later."""
        early = now - self._when < REFRESH_SECONDS
        if fields is self._last and (early or not self._waits):
            return ""  # as nearly always: it must not cost anything
        text, key = advertisement(fields), urgent(fields)
        self._last, self._waits = fields, text != self._printed
        if key == self._told and (early or not self._waits):
            return ""
        ending = IN_TIME if key == self._told else AT_ONCE
        self._told, self._printed, self._when, self._waits = key, text, now, False
        return text + ending


def slot_advertisement(slot: str, fields: Fields) -> str:
    """Returns the ad of one slot's job, which goes into that slot alone (its name begins so); no fields: undefined."""
    lines = [f"{name} = {literal(type_, fields.get(field))}\n" for name, field, type_, _, _ in JOB_ATTRIBUTES]
    return "".join(lines) + f'SlotName = "{slot}@"\n- {slot}\n'


class SlotAdvertiser:
    """Decides what is to be printed of the jobs, and when; like `Advertiser`, it knows nothing of files or clocks."""

    def __init__(self) -> None:
        self._told: dict[str, Fields] = {}
        self._when = -math.inf

    def due(self, jobs: dict[str, Fields], now: float) -> str:
        """Returns what to print at `now` (a clock that only goes forward, s), or ""."""
        if now - self._when < REFRESH_SECONDS or jobs == self._told:
            return ""
        changed = [slot for slot in sorted({*jobs, *self._told}) if jobs.get(slot) != self._told.get(slot)]
        self._told, self._when = jobs, now
        return "".join(slot_advertisement(slot, jobs.get(slot, {})) for slot in changed)
