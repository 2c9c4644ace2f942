"""The simple case, without a policy file: the knobs decide, and a job may ask for a rate up to their maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from htcondor_vpn.condor.job_ad import parse_lines, parse_value
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.granting import NO_RULES_NETWORKS, Grant, Granted, Lookup, Terms
from htcondor_vpn.jobnet.policy.records import decision_of
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.settings import Settings

_TERMS = Terms(networks=NO_RULES_NETWORKS)


class KnobPolicy:
    """Decides by the knobs alone. Ads are read without a ClassAd library: of them only literals count."""

    #: What a job may ask for is within the same limits for all jobs.
    trusts_sandbox = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def decide(self, job_ad: str, machine_ad: str) -> Decision:
        """Decides what a job gets; raises `Refusal` for a request that makes no sense or is above the maximum."""
        return self.granted(job_ad, machine_ad).decision

    def restored(self, record: dict[str, Any]) -> Decision:
        """The decision that `records.record_of` made a record of."""
        return decision_of(record)

    def open(self) -> None:
        """Nothing to make."""

    def watch(self, on_death: Callable[[], None]) -> None:
        """Nothing to watch: it decides by itself."""

    def close(self) -> None:
        """Nothing to end."""

    def granted(self, job_ad: str, machine_ad: str) -> Granted:
        """As `decide`, and says where each value comes from."""
        return Grant(self._settings, _TERMS, _lookup(job_ad, "job"), _lookup(machine_ad, "machine")).granted()


def _lookup(text: str, whose: str) -> Lookup:
    try:
        ad = parse_lines(text)
    except ValueError as error:
        raise Refusal(SubCode.NOT_AN_AD, str(error).replace("the job ad", f"the {whose} ad")) from error
    return lambda name: parse_value(ad.get(name.lower(), "undefined"))
