"""What a job may use: its rates, decided from the knobs and from what its ad asks for.

A job asks by `+VpnBandwidthMbps`, up to the admin's maximum. A request that makes no sense holds the job with hold code
19 and one of our sub-codes (`HookStatusCode` 1 to 299, HTCondor's prepare hook), so that its owner sees why.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from htcondor_vpn.condor.job_ad import Ad, is_finite_number
from htcondor_vpn.settings import Settings

#: What a job asks by, in Mbit/s, for each of the two directions.
BANDWIDTH_ATTRIBUTE = "VpnBandwidthMbps"

#: Below this even the packets that open a connection take seconds.
LOWEST_MBPS = 0.1


class SubCode(IntEnum):
    """`HoldReasonSubCode` of a held job (1-299), or why it went back to the queue (300 and more)."""

    NOT_A_NUMBER = 1
    NOT_POSITIVE = 2
    TOO_LOW = 3
    TOO_HIGH = 4
    NOT_AN_AD = 5
    NOT_EXECUTABLE = 6
    BROKER_UNREACHABLE = 300
    TUNNEL_NOT_UP = 301


class Refusal(Exception):
    """The job cannot run so: `sub_code` and a message for its owner."""

    def __init__(self, sub_code: SubCode, message: str) -> None:
        super().__init__(message)
        self.sub_code, self.message = sub_code, message


class Rates(NamedTuple):
    """A job's ceilings in Mbit/s, seen from the job; 0 is no limit."""

    up_mbps: float
    down_mbps: float


def decide(ad: Ad, settings: Settings) -> Rates:
    """Decides a job's rates; raises `Refusal` for a request that is no sensible rate or above the maximum."""
    asked = ad.get(BANDWIDTH_ATTRIBUTE.lower())
    if asked is None:
        return Rates(settings.job_up_mbps, settings.job_down_mbps)
    maximum = settings.job_max_mbps
    allowed = f"a number of Mbit/s from {LOWEST_MBPS:g} to {maximum:g}"
    if not is_finite_number(asked):
        raise Refusal(SubCode.NOT_A_NUMBER, f"{BANDWIDTH_ATTRIBUTE} is {_shown(asked)}; it must be {allowed}")
    rate = float(asked)
    if rate <= 0:
        raise Refusal(SubCode.NOT_POSITIVE, f"{BANDWIDTH_ATTRIBUTE} is {_shown(asked)}; it must be {allowed}")
    if rate < LOWEST_MBPS:
        raise Refusal(SubCode.TOO_LOW, f"{BANDWIDTH_ATTRIBUTE} is {_shown(asked)}; it must be {allowed}")
    if rate > maximum:
        raise Refusal(
            SubCode.TOO_HIGH,
            f"{BANDWIDTH_ATTRIBUTE} is {_shown(asked)}, more than the {maximum:g} Mbit/s that this site allows a job",
        )
    return Rates(rate, rate)


def _shown(value: object) -> str:
    text = f'"{value}"' if type(value) is str else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
