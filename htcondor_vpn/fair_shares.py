"""Dividing what there is by weights, so that nobody gets more than it can use while another wants more (max-min)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """One claimant: its weight against the others', and the most that it can use (math.inf: all that there is)."""

    weight: float
    most: float


def fair_shares(capacity: float, claims: Sequence[Claim]) -> list[float]:
    """Divides `capacity` among `claims`, in their order; with math.inf each gets the most that it can use."""
    shares = [0.0] * len(claims)
    left, weight = capacity, sum(claim.weight for claim in claims)
    for index in sorted(range(len(claims)), key=lambda index: claims[index].most / claims[index].weight):
        claim = claims[index]
        fair = math.inf if math.isinf(left) else left * claim.weight / weight
        shares[index] = min(claim.most, fair)
        left -= 0.0 if math.isinf(left) else shares[index]
        weight -= claim.weight
    return shares
