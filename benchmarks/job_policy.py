"""What the policy of job networks costs: from two ads to a decision, by the process that judges, and its memory."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator

from benchmarks.processes import pss_bytes, tree
from htcondor_vpn.jobnet.policy.policy import compiled_policy
from htcondor_vpn.jobnet.policy.source import parse_source
from htcondor_vpn.settings import Settings
from htcondor_vpn.testbed.report import MEASURED, Report

DECISIONS_A_ROUND = 50
MANY = 10_000

#: Of the size that ads have: 110 and 170 attributes, 4 and 7 KB.
_JOB_AD = 'Owner = "user{}"\nRequestCpus = 4\n' + "".join(
    f'JobAttribute{number} = "a value of some length, {number}"\n' for number in range(108)
)
_MACHINE_AD = "Cpus = 8\n" + "".join(f'MachineAttribute{number} = "a value, {number}"\n' for number in range(169))

_KINDS = {
    "one rule for each user": 'TARGET.Owner == "user{0}" && TARGET.RequestCpus >= 1',
    "rules that have to be tried one by one": "TARGET.RequestCpus > {0} + 4 && MY.Cpus > 1",
}


def measure(report: Report, rounds: int, _: int) -> None:
    report.say("The policy of job networks")
    for name, condition in _KINDS.items():
        for count in (10, MANY):
            begin = time.perf_counter()
            policy = _policy(condition, count)
            compiled_seconds = time.perf_counter() - begin
            times, memory = asyncio.run(_decisions(policy, rounds * DECISIONS_A_ROUND, count))
            median, p99 = statistics.median(times), sorted(times)[int(0.99 * len(times))]
            report.add(f"a decision of {count} rules, median; {name}", True, median, "ms", MEASURED)
            report.add(f"a decision of {count} rules, p99; {name}", True, p99, "ms", MEASURED)
        report.add(f"{count} rules compiled at the start; {name}", True, compiled_seconds, "s", MEASURED)
        report.add(f"memory of the judge's two processes, {count} rules", True, memory / 1e6, "MB", MEASURED)


def _policy(condition: str, count: int) -> object:
    text = "\n".join(f"[rule r{number}]\nwhen = {condition.format(number)}\nup_mbps = 5" for number in range(count))
    source = parse_source(text, "policy", [])
    return compiled_policy(source, Settings.load())


async def _decisions(policy: object, count: int, rules: int) -> tuple[list[float], int]:
    """How long `count` decisions took, ms, and the memory of the processes that made them, bytes."""
    from htcondor_vpn.jobnet.policy.file_policy import FilePolicy
    from htcondor_vpn.jobnet.policy.judge import Judge

    assert isinstance(policy, FilePolicy)
    judge = Judge(policy)
    judge.open()
    judge.watch(lambda: None)
    times = []
    for owner in _owners(count, rules):
        ad = _JOB_AD.format(owner)
        begin = time.perf_counter()
        await judge.decide(ad, _MACHINE_AD)
        times.append((time.perf_counter() - begin) * 1e3)
    memory = sum(pss_bytes(pid) for pid in tree(os.getpid()) if pid != os.getpid())
    judge.close()
    return times, memory


def _owners(count: int, rules: int) -> Iterator[int]:
    """Half of them the rules know."""
    return (number * 7919 % (2 * rules) for number in range(count))
