"""Who gets how much: max-min fair, work-conserving, and nobody more than his own limit."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.fair_shares import Claim, fair_shares
from htcondor_vpn.gateway.operation.allocation import PERIOD_SECONDS, Allocator
from htcondor_vpn.gateway.operation.shares import Need, Rates

INF = math.inf
IDLE = Need(INF, 0, 0)

claims = st.lists(
    st.builds(
        Claim, st.floats(0.1, 100), st.one_of(st.just(INF), st.floats(0, 1e9))
    ),
    max_size=20,
)  # fmt: skip


@given(st.floats(1, 1e9), claims)
def test_shares_are_max_min_fair(capacity, claims):
    shares = fair_shares(capacity, claims)
    wanted = sum(claim.most for claim in claims)
    assert sum(shares) == pytest.approx(min(capacity, wanted), rel=1e-6)
    held_up = [share / claim.weight for share, claim in zip(shares, claims) if share < claim.most * (1 - 1e-9)]
    for share, claim in zip(shares, claims):
        assert share <= claim.most
        if held_up:  # who gets less than he wants gets as much as anyone, by weight
            assert share / claim.weight <= min(held_up) * (1 + 1e-6)


def test_without_a_limit_everyone_gets_all():
    assert fair_shares(INF, [Claim(1, INF), Claim(2, 5.0)]) == [INF, 5.0]


def rates(total, needs, index=1):
    """Pilots' rates over all processes, by what each process told: {process: {pilot: need}}, of one direction."""
    allocator = Allocator(Rates((total, total)))
    for process, told in needs.items():
        allocator.heard(process, [(pilot, need, need) for pilot, need in told.items()])
    found = {}
    for pilots in allocator.rates().values():
        for pilot, *both in pilots:
            found[pilot] = found.get(pilot, 0) + both[index]
    return found


def test_pilots_share_equally_however_many_flows_they_have_and_wherever_these_are():
    needs = {1: {"a": Need(INF, 0, 1), "b": Need(INF, 0, 30)}, 2: {"b": Need(INF, 0, 9), "c": Need(INF, 0, 2)}}
    assert rates(900.0, needs) == pytest.approx({"a": 300, "b": 300, "c": 300})


def test_what_one_does_not_use_is_the_others():
    little = int(10e6 * PERIOD_SECONDS)
    found = rates(100e6, {1: {"a": Need(INF, little, 0), "b": Need(INF, 0, 1)}})
    assert found["b"] == pytest.approx(90e6, rel=0.02)
    assert found["a"] >= 10e6


def test_nobody_gets_more_than_his_limit():
    found = rates(100.0, {1: {"a": Need(20, 0, 4), "b": Need(INF, 0, 1)}, 2: {"a": Need(20, 0, 4)}})
    assert found == pytest.approx({"a": 20, "b": 80})
    assert rates(INF, {1: {"a": Need(20, 0, 4)}, 2: {"a": Need(20, 0, 0)}})["a"] == pytest.approx(20)


def test_a_pilots_flows_share_equally_over_processes():
    allocator = Allocator(Rates((INF, 120.0)))
    allocator.heard(1, [("a", IDLE, Need(INF, 0, 1))])
    allocator.heard(2, [("a", IDLE, Need(INF, 0, 2))])
    assert [allocator.rates()[process] for process in (1, 2)] == [
        [("a", INF, pytest.approx(40))], [("a", INF, pytest.approx(80))],
    ]  # fmt: skip


def test_a_process_that_is_gone_needs_nothing():
    allocator = Allocator(Rates((100.0, 100.0)))
    allocator.heard(1, [("a", Need(INF, 0, 1), IDLE)])
    allocator.heard(2, [("b", Need(INF, 0, 1), IDLE)])
    allocator.heard(2, [("c", Need(INF, 0, 1), IDLE)], more=True)
    assert {pilot for pilot, *_ in allocator.rates()[2]} == {"b", "c"}
    allocator.gone(2)
    assert allocator.rates()[1][0][:2] == ("a", pytest.approx(100))
