"""Who gets which part: what is promised first, the rest by groups and weights, nobody more than its ceiling."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.sharing.division import Member, divide

INF = math.inf

members = st.dictionaries(
    st.integers(0, 255),
    st.builds(
        Member,
        st.sampled_from("abc"),
        st.floats(0.01, 128),
        st.one_of(st.just(0.0), st.floats(1e3, 1e9)),
        st.one_of(st.just(INF), st.floats(1e3, 1e9)),
    ),
    max_size=30,
)


@given(st.floats(1e4, 1e10), members)
def test_parts_add_up_and_stay_below_the_ceilings(rate: float, jobs: dict[int, Member]) -> None:
    parts = divide(rate, jobs)
    assert set(parts) == set(jobs)
    assert sum(parts.values()) <= rate * (1 + 1e-9)
    for number, part in parts.items():
        assert 0 <= part <= jobs[number].ceiling_bps * (1 + 1e-9)
    by_weight = [number for number, job in jobs.items() if not job.guaranteed_bps]
    if any(parts[number] < jobs[number].ceiling_bps * (1 - 1e-9) for number in by_weight):
        assert sum(parts.values()) == pytest.approx(rate, rel=1e-6)


@given(st.floats(1e4, 1e10), members)
def test_what_is_guaranteed_is_there_or_cut_for_all_alike(rate: float, jobs: dict[int, Member]) -> None:
    parts = divide(rate, jobs)
    promised = {n: min(job.guaranteed_bps, job.ceiling_bps) for n, job in jobs.items() if job.guaranteed_bps}
    factor = min(1.0, rate / sum(promised.values())) if promised else 1.0
    for number, part in promised.items():
        assert parts[number] == pytest.approx(part * factor)


def test_groups_are_equal_and_their_jobs_by_weight() -> None:
    jobs = {0: Member("a", 1, 0, INF), 1: Member("b", 1, 0, INF), 2: Member("b", 3, 0, INF)}
    assert divide(80.0, jobs) == pytest.approx({0: 40, 1: 10, 2: 30})


def test_what_a_ceiling_leaves_is_the_groups_first() -> None:
    jobs = {0: Member("a", 1, 0, INF), 1: Member("b", 1, 0, 5), 2: Member("b", 1, 0, INF)}
    assert divide(80.0, jobs) == pytest.approx({0: 40, 1: 5, 2: 35})


def test_who_was_promised_a_rate_has_that_and_others_the_rest() -> None:
    jobs = {0: Member("a", 1, 60, INF), 1: Member("a", 9, 0, INF), 2: Member("b", 1, 0, INF)}
    assert divide(80.0, jobs) == pytest.approx({0: 60, 1: 10, 2: 10})


def test_nobody_is_nothing() -> None:
    assert divide(80.0, {}) == {}
