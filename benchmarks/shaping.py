"""What jobs get of a rate: ceilings, guaranteed parts, equal ones, and what idle ones leave; and what shaping costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from htcondor_vpn.jobnet.policy.decision import Decision, Share
from htcondor_vpn.testbed.jobs_together import Run, Scenario, jain
from htcondor_vpn.testbed.jobs_together import measure as measured
from htcondor_vpn.testbed.report import Report

_RATES_MBPS = (10.0, 100.0, 1000.0)
_EQUAL_JOBS = 20
_UNREACHABLE_MBPS = 900_000.0
_COST_ROUNDS = 4
_TIMEOUT_SECONDS = 600.0


def measure(report: Report, rounds: int, seconds: int) -> None:
    for mbps in _RATES_MBPS:
        report.say(f"Jobs that share {mbps:g} Mbit/s")
        _ceiling(report, mbps, rounds, seconds)
        _guaranteed(report, mbps, rounds, seconds)
        _groups(report, mbps, rounds, seconds)
        _equal(report, mbps, rounds, seconds)


def measure_cost(report: Report, rounds: int, seconds: int) -> None:
    """A job without a limit against one whose ceiling is out of reach, each in its turn for a second."""
    report.say("What shaping costs a job that is not held up by it")
    for way in ("up", "down"):
        runs = [Run(way == "up", 1.0, (number,)) for _ in range(_COST_ROUNDS * rounds) for number in (0, 1)]
        results = measured(Scenario([_job(), _job(ceiling=_UNREACHABLE_MBPS)], runs), _TIMEOUT_SECONDS)
        free = [rates[0] for rates in results[::2]]
        shaped = [rates[1] for rates in results[1::2]]
        ratio = statistics.median(mine / theirs for mine, theirs in zip(shaped, free))
        shown = f"{ratio:.3f} ({statistics.median(shaped):,.0f} of {statistics.median(free):,.0f} Mbit/s)"
        report.add(f"a ceiling out of reach, {way}: times no limit", ratio >= 0.98, shown, "", ">= 0.98")


def _job(guaranteed: float = 0.0, ceiling: float = 0.0, group: str = "") -> Decision:
    share = Share(guaranteed, ceiling)
    return Decision(up=share, down=share, group=group)


def _both(rounds: int, seconds: float, jobs: tuple[int, ...] = ()) -> list[Run]:
    """Up and down in turns."""
    return [Run(up, seconds, jobs, version=version) for version in _versions(rounds) for up in (True, False)]


def _versions(rounds: int) -> list[int]:
    return [4 + 2 * (number % 2) for number in range(rounds)]


def _ways(results: Sequence[dict[int, float]]) -> dict[str, Sequence[dict[int, float]]]:
    return {"up": results[::2], "down": results[1::2]}


def _ceiling(report: Report, mbps: float, rounds: int, seconds: int) -> None:
    results = measured(Scenario([_job(ceiling=mbps)], _both(rounds, seconds)), _TIMEOUT_SECONDS)
    for way, of_way in _ways(results).items():
        rate = statistics.median(rates[0] for rates in of_way)
        report.add(f"ceiling of {mbps:g} Mbit/s, {way}", abs(rate / mbps - 1) <= 0.02, rate, "Mbit/s", "within 2 %")


def _guaranteed(report: Report, mbps: float, rounds: int, seconds: int) -> None:
    wanted = {0: 0.8 * mbps, 1: 0.2 * mbps}
    runs = _both(rounds, seconds) + _both(rounds, seconds, jobs=(1,))
    results = measured(Scenario([_job(rate) for rate in wanted.values()], runs, mbps, mbps), _TIMEOUT_SECONDS)
    for way, of_way in _ways(results[: len(results) // 2]).items():
        _row(report, f"80 and 20 % of {mbps:g} Mbit/s guaranteed, {way}: farthest", of_way, wanted)
    for way, of_way in _ways(results[len(results) // 2 :]).items():
        lent = statistics.median(rates[1] / mbps for rates in of_way) * 100
        report.add(f"the second alone, {way}: of {mbps:g} Mbit/s", lent >= 97, lent, "%", ">= 97 %")


def _groups(report: Report, mbps: float, rounds: int, seconds: int) -> None:
    jobs = [_job(group="one"), *[_job(group="four")] * 4]
    wanted = {0: mbps / 2, **dict.fromkeys(range(1, 5), mbps / 8)}
    results = measured(Scenario(jobs, _both(rounds, seconds), mbps, mbps), _TIMEOUT_SECONDS)
    for way, of_way in _ways(results).items():
        _row(report, f"groups of 1 and 4 jobs, {mbps:g} Mbit/s, {way}: farthest", of_way, wanted)


def _row(report: Report, name: str, results: Sequence[dict[int, float]], wanted: dict[int, float]) -> None:
    """The farthest that any job is from what it should have, in the median of the rounds."""
    far = [max(abs(rates[number] / rate - 1) for number, rate in wanted.items()) * 100 for rates in results]
    value = statistics.median(far)
    report.add(name, value <= 3, value, "%", "<= 3 %")


def _equal(report: Report, mbps: float, rounds: int, seconds: int) -> None:
    scenario = Scenario([_job()] * _EQUAL_JOBS, _both(rounds, seconds), mbps, mbps)
    for way, of_way in _ways(measured(scenario, _TIMEOUT_SECONDS)).items():
        index = statistics.median(jain(rates.values()) for rates in of_way)
        name = f"{_EQUAL_JOBS} equal jobs, {mbps:g} Mbit/s, {way}: Jain"
        report.add(name, index >= 0.98, round(index, 4), "", ">= 0.98")
