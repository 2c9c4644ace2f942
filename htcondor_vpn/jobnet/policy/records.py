"""A decision as JSON, without what the policy says for all jobs of a rule: that comes from the policy again."""

from __future__ import annotations

from typing import Any

from htcondor_vpn.jobnet.policy.decision import Decision, Share


def record_of(decision: Decision) -> dict[str, Any]:
    """The record of a decision, without its destinations and classes."""
    return {
        "rule": decision.rule,
        "network": decision.network,
        "through": decision.through,
        "up": [decision.up.guaranteed_mbps, decision.up.ceiling_mbps],
        "down": [decision.down.guaranteed_mbps, decision.down.ceiling_mbps],
        "weight": decision.weight,
        "group": decision.group,
        "recorded": decision.recorded,
    }


def decision_of(record: dict[str, Any]) -> Decision:
    """The decision of a record, without destinations and classes."""
    shares = {direction: Share(*record[direction]) for direction in ("up", "down")}
    return Decision(**{**record, **shares})
