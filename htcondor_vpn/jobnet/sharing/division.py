"""Divides one direction's rate among the jobs that are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from htcondor_vpn.fair_shares import Claim, fair_shares


class Member(NamedTuple):
    """A job in one direction, rates in bit/s.

    `guaranteed_bps` 0 means a part by `weight`; `ceiling_bps` is math.inf without a ceiling.
    """

    group: str
    weight: float
    guaranteed_bps: float
    ceiling_bps: float


def divide(rate_bps: float, members: Mapping[int, Member]) -> dict[int, float]:
    """Returns each job's part of `rate_bps`, which add up to it unless all have reached their ceilings.

    First come the guaranteed rates, all cut by the same factor where they are more than there is. The rest is divided
    among the groups of the others, equally, and within each group by weight.
    """
    parts = {
        number: min(member.guaranteed_bps, member.ceiling_bps)
        for number, member in members.items()
        if member.guaranteed_bps
    }
    promised = sum(parts.values())
    if promised > rate_bps:
        parts = {number: part * rate_bps / promised for number, part in parts.items()}
    groups: dict[str, dict[int, Claim]] = {}
    for number, member in members.items():
        if number not in parts:
            groups.setdefault(member.group, {})[number] = Claim(member.weight, member.ceiling_bps)
    group_claims = [Claim(1.0, sum(claim.most for claim in claims.values())) for claims in groups.values()]
    for claims, part in zip(groups.values(), fair_shares(max(0.0, rate_bps - promised), group_claims)):
        parts.update(zip(claims, fair_shares(part, list(claims.values()))))
    return parts
