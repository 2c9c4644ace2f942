from __future__ import annotations

import os

import pytest

from htcondor_vpn.linux import descriptors
from htcondor_vpn.linux.descriptors import DescriptorBudget


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only element; this process may have 50 descriptors more than it has now."""
    now = [1000.0]
    monkeypatch.setattr(descriptors.time, "monotonic", lambda: now[0])
    limit = len(os.listdir("/proc/self/fd")) + 50
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: (limit, limit))
    return now


def test_no_more_is_promised_than_there_is(clock: list[float]) -> None:
    budget = DescriptorBudget(2)
    assert [budget.take(10) for _ in range(12)] == [True] * 11 + [False]  # 50, less 8 to spare, less 2 for each


def test_it_counts_anew_after_a_while(clock: list[float]) -> None:
    budget = DescriptorBudget(2)
    while budget.take(0):
        pass
    clock[0] += 0.1
    assert not budget.take(0)
    clock[0] += 1
    assert budget.take(0)
    assert not DescriptorBudget(2).take(25)


def test_none_is_left_even_to_count_them(without_descriptors) -> None:  # type: ignore[no-untyped-def]
    """Who asks then is told so: an error would leave what it asked for without an answer."""
    with without_descriptors():
        assert not DescriptorBudget(2).take(0)
