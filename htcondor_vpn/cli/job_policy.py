"""What a job gets by the policy, and why, as a text for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from htcondor_vpn.cli.output import plain
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.destinations import Destination
from htcondor_vpn.jobnet.policy.knob_policy import KnobPolicy
from htcondor_vpn.jobnet.policy.policy import compiled_policy, read_policy
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode, shown
from htcondor_vpn.settings import Settings

if TYPE_CHECKING:
    from htcondor_vpn.jobnet.policy.file_policy import FilePolicy

#: The exit code for a job that does not run.
REFUSED = 3

#: Rules that did not match and are shown; of 10,000 nobody reads all.
_MOST_RULES = 40


def explain(settings: Settings, job_ad: str, machine_ad: str, say: Callable[[str], None]) -> int:
    """Says what a job gets, of its ad and the slot's in HTCondor's old syntax; returns 0, or `REFUSED`.

    Raises `VpnError` for a policy that is wrong.
    """
    source = read_policy(settings)
    policy = None if source is None else compiled_policy(source, settings)
    if not machine_ad:
        say("no slot's ad is given: MY.… is undefined, and the weight is by the job's ad\n")
    try:
        if policy is not None:
            for line in _asked(policy, job_ad, machine_ad):
                say(plain(line))
            say("")
        granted = (policy or KnobPolicy(settings)).granted(job_ad, machine_ad)
    except Refusal as refusal:
        say(plain(_refused(refusal)))
        return REFUSED
    for name, value in _values(granted.decision):
        source_text = granted.sources.get(name, "")
        say(plain(f"{name:20}  {value:20}  {source_text}".rstrip()))
    return 0


def _asked(policy: FilePolicy, job_ad: str, machine_ad: str) -> Iterator[str]:
    """Each rule that was asked, with the value of its expression; the last one decides."""
    hidden, decided = 0, False
    for number, (rule, value) in enumerate(policy.asked(job_ad, machine_ad)):
        decided = bool(value)
        if not decided and number >= _MOST_RULES:
            hidden += 1
            continue
        if hidden:
            yield _hidden(hidden)
        when = "(for every job)" if rule.when is None else " ".join(rule.when.text.split())
        yield f"{'-> ' if decided else '   '}{_value(value):10} rule {rule.name} ({rule.origin}): {when}"
    if not decided:
        if hidden:
            yield _hidden(hidden)
        yield "-> no rule matches: the knobs decide"


def _hidden(count: int) -> str:
    return f"   … and {count} more rules that do not match"


def _value(value: object) -> str:
    if value is None:
        return "undefined"
    return str(value).lower() if isinstance(value, bool) else shown(value)


def _refused(refusal: Refusal) -> str:
    code = int(refusal.sub_code)
    if code < SubCode.BROKER_UNREACHABLE:
        return f"the job is held (HoldReasonCode 19, HoldReasonSubCode {code}): {refusal.message}"
    return f"the job goes back to the queue (code {code}): {refusal.message}"


def _values(decision: Decision) -> Iterator[tuple[str, str]]:
    yield "rule", decision.rule
    through = "" if decision.through == decision.network else f" (through: {decision.through})"
    yield "network", decision.network + through
    for direction, share in (("up", decision.up), ("down", decision.down)):
        yield f"{direction}.ceiling_mbps", f"{share.ceiling_mbps:g}" if share.ceiling_mbps else "none"
        yield f"{direction}.guaranteed_mbps", f"{share.guaranteed_mbps:g}" if share.guaranteed_mbps else "by weight"
    yield "weight", f"{decision.weight:g}"
    yield "group", decision.group or "none"
    yield "allowed", _listed(decision.allowed) or "everything"
    yield "denied", _listed(decision.denied) or "nothing"
    yield "recorded", "yes" if decision.recorded else "no"
    for name, destinations in decision.classes.items():
        yield f"class {name}", _listed(destinations)


def _listed(destinations: tuple[Destination, ...]) -> str:
    return ", ".join(map(str, destinations))
