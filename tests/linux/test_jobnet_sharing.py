"""How jobs share what they may use together: measured with real traffic, and as the kernel shows it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobnet_pilot import Pilot, until

from htcondor_vpn.addresses import SHAPER_NAMES
from htcondor_vpn.jobnet.policy.decision import Decision, Share
from htcondor_vpn.testbed.jobs_together import Run, Scenario, measure

pytestmark = pytest.mark.linux

MBPS = 40.0
ATTEMPTS = 3


def job(group: str = "", *, guaranteed: float = 0.0, ceiling: float = 0.0, weight: float = 1.0) -> Decision:
    share = Share(guaranteed, ceiling)
    return Decision(up=share, down=share, group=group, weight=weight)


def assert_shares(jobs: list[Decision], wanted: dict[Run, list[float]], tolerance: float = 0.05) -> None:
    """Asserts that no run carries more than `MBPS`, and that each gives the jobs what is wanted in one of three."""
    left, seen = dict(wanted), []
    for _ in range(ATTEMPTS):
        runs = list(left)
        for run, rates in zip(runs, measure(Scenario(jobs, runs, MBPS, MBPS))):
            seen.append((run, rates))
            assert sum(rates.values()) <= MBPS * (1 + tolerance), seen
            if list(rates.values()) == pytest.approx(left[run], rel=tolerance):
                del left[run]
        if not left:
            return
    raise AssertionError(f"not as wanted: {left}; seen: {seen}")


def test_guaranteed_parts_hold_and_idle_ones_are_lent() -> None:
    jobs = [job(guaranteed=0.8 * MBPS), job(guaranteed=0.2 * MBPS)]
    both, alone = [0.8 * MBPS, 0.2 * MBPS], [MBPS]
    assert_shares(
        jobs,
        {
            Run(up=True, seconds=2): both,
            Run(up=False, seconds=2, version=6): both,
            Run(up=True, seconds=2, jobs=(1,), version=6): alone,
            Run(up=False, seconds=2, jobs=(1,)): alone,
        },
    )


def test_groups_share_equally_whatever_their_number_of_jobs() -> None:
    wanted = [MBPS / 2, *[MBPS / 8] * 4]
    jobs = [job("few"), *[job("many")] * 4]
    assert_shares(jobs, {Run(up=True): wanted, Run(up=False, version=6): wanted})


def test_weights_count_within_a_group_and_a_ceiling_leaves_the_rest_to_others() -> None:
    jobs = [job(weight=1), job(weight=3), job(ceiling=8)]
    wanted = [(MBPS - 8) / 4, (MBPS - 8) * 3 / 4, 8]
    assert_shares(jobs, {Run(up=False): wanted, Run(up=True): wanted, Run(up=True, seconds=2, jobs=(2,)): [8.0]})


def test_a_forged_hardware_address_gives_no_part_of_anothers() -> None:
    runs = [Run(up=True, seconds=1, jobs=(0,)), Run(up=True, seconds=1, jobs=(1,), forged=0)]
    honest, forged = measure(Scenario([job(), job()], runs, MBPS, MBPS))
    assert honest[0] > 0
    assert forged == {1: 0.0}


@pytest.fixture
def pilot(tmp_path: Path) -> Iterator[Pilot]:
    with Pilot(tmp_path, jobs_up_mbps="100", jobs_down_mbps="60") as pilot:
        yield pilot


def rates(pilot: Pilot, link: str) -> dict[str, str]:
    """What a link's jobs have in any case, by their classes: `{"8000": "50Mbit"}`."""
    shown = pilot.output("/usr/sbin/tc", "class", "show", "dev", link)
    return dict(re.findall(r"class htb 1:(8\w{3}) .* rate (\S+) ceil", shown))


def both(pilot: Pilot) -> list[dict[str, str]]:
    return [rates(pilot, link) for link in SHAPER_NAMES]


def until_equal(look: Callable[[], object], wanted: object) -> None:
    assert until(lambda: look() == wanted), look()


def test_parts_change_as_jobs_come_and_go_and_nothing_is_left(pilot: Pilot) -> None:
    bare = [pilot.output("/usr/sbin/tc", "class", "show", "dev", link) for link in SHAPER_NAMES]
    first = pilot.start_job("/bin/sleep", "1000", ad="RequestCpus = 1")
    until_equal(lambda: both(pilot), [{"8000": "100Mbit"}, {"8000": "60Mbit"}])
    second = pilot.start_job("/bin/sleep", "1000", ad="RequestCpus = 1")
    until_equal(lambda: both(pilot), [dict.fromkeys(("8000", "8001"), rate) for rate in ("50Mbit", "30Mbit")])
    first.kill()
    first.communicate()
    until_equal(lambda: both(pilot), [{"8001": "100Mbit"}, {"8001": "60Mbit"}])
    second.kill()
    second.communicate()
    until_equal(lambda: [pilot.output("/usr/sbin/tc", "class", "show", "dev", link) for link in SHAPER_NAMES], bare)
    for link in SHAPER_NAMES:
        assert "flowid" not in pilot.output("/usr/sbin/tc", "filter", "show", "dev", link)


def test_accounting_groups_and_cpus_are_those_of_the_job_ad(pilot: Pilot) -> None:
    ads = ['AcctGroup = "a"', 'AcctGroup = "b"\nCpusProvisioned = 1', 'AcctGroup = "b"\nCpusProvisioned = 3']
    starters = []
    for number, ad in enumerate(ads, 1):
        starters.append(pilot.start_job("--prepared", "0", "/bin/sleep", "1000", ad=ad))
        until_equal(lambda: len(rates(pilot, "htvup")), number)  # noqa: B023  (it is called at once)
    until_equal(lambda: both(pilot)[0], {"8000": "50Mbit", "8001": "12500Kbit", "8002": "37500Kbit"})
    assert both(pilot)[1] == {"8000": "30Mbit", "8001": "7500Kbit", "8002": "22500Kbit"}
    for starter in starters:
        starter.kill()
        starter.communicate()


@pytest.mark.parametrize("link_is_left", [True, False])
def test_another_broker_finds_the_parts_and_goes_on_with_them(
    pilot: Pilot, monkeypatch: pytest.MonkeyPatch, link_is_left: bool
) -> None:
    monkeypatch.setattr("htcondor_vpn.jobnet.service.GRACE_SECONDS", 0.5)
    kept, scratch = pilot.start_job("/bin/sleep", "1000"), pilot.scratch()
    lost = pilot.start_job("/bin/sh", "-c", "echo $$ > job; exec sleep 1000", scratch=scratch)
    until_equal(lambda: set(rates(pilot, "htvup").values()), {"50Mbit"})
    assert until(lambda: (scratch / "job").exists() and (scratch / "job").read_text())
    pilot.kill_broker()
    lost.kill()
    lost.communicate()
    os.kill(int((scratch / "pids").read_text().split()[1]), signal.SIGKILL)
    if not link_is_left:
        os.kill(int((scratch / "job").read_text()), signal.SIGKILL)
        assert until(lambda: len(pilot.links()) == 1)
    assert list(rates(pilot, "htvup").values()) == ["50Mbit", "50Mbit"]
    pilot.start_broker()
    assert until(lambda: "was taken over" in pilot.log()), pilot.log()
    until_equal(lambda: list(rates(pilot, "htvup").values()), ["100Mbit"])
    new = pilot.start_job("/bin/sleep", "1000")
    until_equal(lambda: list(rates(pilot, "htvdown").values()), ["30Mbit", "30Mbit"])
    for starter in (kept, new):
        starter.kill()
        starter.communicate()
    until_equal(lambda: both(pilot), [{}, {}])


def test_what_waits_where_is_said(pilot: Pilot) -> None:
    assert re.search(r"jobs' traffic is shaped by htb, and waits in (fq_codel|bfifo)", pilot.log())
