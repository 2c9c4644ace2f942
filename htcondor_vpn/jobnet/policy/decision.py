"""All that was decided for a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from htcondor_vpn.jobnet.policy.destinations import Destination

#: Networks that always exist: through the tunnel, the host's own, and no network at all.
TUNNEL, HOST, NONE = "tunnel", "host", "none"

#: The rule that decides where no rule of a policy file did.
KNOBS = "knobs"


@dataclass(frozen=True)
class Share:
    """A job's part of one direction, in Mbit/s.

    `guaranteed_mbps` 0 means a part by the job's weight, `ceiling_mbps` 0 no ceiling.
    """

    guaranteed_mbps: float = 0.0
    ceiling_mbps: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What a job gets. `up` is what it sends, `down` what it receives.

    `rule` is the name of the rule that decided. `network` is one of `TUNNEL`, `HOST`, `NONE`, or a named one; `through`
    is which of those three it is then. `weight` (more than 0, in cpus) and `group` (an accounting group, else the user)
    are for sharing a link among jobs.

    The job reaches a destination if `allowed` is empty or covers it, and `denied` does not cover it. `classes` are the
    policy's destinations to count, the same for all jobs: of those that cover a destination, the first counts.
    `recorded` says whether its flight recorder runs.
    """

    rule: str = KNOBS
    network: str = TUNNEL
    up: Share = Share()
    down: Share = Share()
    weight: float = 1.0
    group: str = ""
    allowed: tuple[Destination, ...] = ()
    denied: tuple[Destination, ...] = ()
    recorded: bool = False
    classes: Mapping[str, tuple[Destination, ...]] = field(default_factory=dict)
    through: str = TUNNEL
