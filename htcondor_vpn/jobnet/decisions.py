"""What is decided for which job: asked for before the job's files are fetched, and in force when it starts."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Collection
from dataclasses import replace

from htcondor_vpn.jobnet.kept_decisions import Kept, KeptDecisions
from htcondor_vpn.jobnet.policy.decision import HOST, KNOBS, TUNNEL, Decision
from htcondor_vpn.jobnet.policy.look_ups import NotResolved
from htcondor_vpn.jobnet.policy.names import Names
from htcondor_vpn.jobnet.policy.policy import Policy
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.linux.peers import Peer

log = logging.getLogger(__name__)

_NAME = re.compile(r'^GlobalJobId\s*=\s*"([^"\\]*)"', re.IGNORECASE | re.MULTILINE)

_LONGEST_MACHINE_AD_BYTES = 1 << 20


class Decisions:
    """The decisions of one broker. `networks` are those that jobs can have here."""

    def __init__(self, policy: Policy, kept: KeptDecisions, names: Names, networks: Collection[str]) -> None:
        self._policy, self._kept, self._names, self._networks = policy, kept, names, networks

    async def prepare(self, starter: int, job_ad: str, machine_ad: str) -> Decision:
        """Decides for the job of `starter`; raises `Refusal`, and OSError if the decision cannot be kept."""
        kept = self._kept.of(starter)
        if kept is None:
            kept = Kept(job_name(job_ad), await self._decide(job_ad, machine_ad))
            await self._require_possible(kept.decision)
            self._kept.keep(starter, *kept)
        return kept.decision

    async def at_start(self, starter: int, sandbox_ad: str) -> Kept:
        """What is in force for the job that `starter` starts; raises `Refusal`.

        `sandbox_ad` is what the wrapper read; it counts where no hook has asked before, and nothing depends on it.
        """
        kept = self._kept.of(starter)
        if kept is None:
            if not self._policy.trusts_sandbox:
                raise Refusal(
                    SubCode.NOT_DECIDED,
                    "no hook has asked the policy about this job: set HTCONDOR_VPN_HOOK_PREPARE_JOB_BEFORE_TRANSFER "
                    "and STARTER_JOB_HOOK_KEYWORD as condor_config.d/50-htcondor-vpn.conf does",
                )
            kept = Kept(job_name(sandbox_ad), await self._decide(sandbox_ad, ""))
            if starter:  # 0: in a PID namespace that cannot be seen from here
                self._kept.keep(starter, *kept)
        await self._require_possible(kept.decision)
        return kept

    async def _decide(self, job_ad: str, machine_ad: str) -> Decision:
        decision = await self._policy.decide(job_ad, machine_ad)
        if decision.rule == KNOBS and decision.through == TUNNEL and TUNNEL not in self._networks:
            return replace(decision, network=HOST, through=HOST)  # no rule chose: it is the one that there is
        return decision

    def taken_over(self, starter: int) -> Kept:
        """What is in force for a job that runs already, by another broker's decision; the default if that is lost."""
        return self._kept.of(starter) or Kept("", Decision())

    async def _require_possible(self, decision: Decision) -> None:
        """Raises `Refusal` where a job cannot have here, or not now, what was decided for it."""
        if decision.through not in self._networks:
            raise Refusal(
                SubCode.NETWORK_NOT_HERE,
                f"rule {decision.rule} gives this job the network {decision.network}, which there is not on this node",
            )
        try:
            await self._names.check((*decision.allowed, *decision.denied))
        except NotResolved as error:
            message = f"rule {decision.rule} names a destination that has no address now: {error}"
            raise Refusal(SubCode.NAME_NOT_RESOLVED, message) from error


def read_machine_ad(peer: Peer, path: str) -> str:
    """Reads the slot's ad, which the starter wrote beside the job's files; empty where there is none.

    The path is one in the mount namespace of `peer`, the starter's hook.
    """
    if not path.startswith("/"):
        return ""
    try:
        descriptor = os.open(f"/proc/{peer.pid}/root{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        log.warning("the slot's ad cannot be read, and is empty for the policy: %s", error)
        return ""
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return file.read(_LONGEST_MACHINE_AD_BYTES).decode(errors="surrogateescape")


def job_name(ad: str) -> str:
    """A job's GlobalJobId, or an empty text."""
    match = _NAME.search(ad)
    return match[1] if match else ""
