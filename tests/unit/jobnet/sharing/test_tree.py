"""The book-keeping of classes: the kernel is told each thing once, and everything is taken away again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.policy.decision import Decision, Share
from htcondor_vpn.jobnet.sharing.shaper import Note
from htcondor_vpn.jobnet.sharing.tree import Tree, job_class
from htcondor_vpn.linux.netlink import Request
from htcondor_vpn.linux.traffic_control import RTM_DELTCLASS, RTM_NEWTCLASS, Class

MBPS = 100.0


def classes(requests: Sequence[Request], kind: int) -> list[int]:
    """The minor numbers of the classes that requests are about."""
    return [int.from_bytes(request.body[8:10], "little") for request in requests if request.kind == kind]


def joined(tree: Tree, number: int, group: str = "") -> list[Request]:
    return tree.add(number, tree.member(group, 1.0, Share()), f"htvj{number}")


def test_a_group_comes_with_its_first_job_and_goes_with_its_last() -> None:
    tree = Tree(7, MBPS)
    assert len(classes(joined(tree, 0, "a"), RTM_NEWTCLASS)) == 2
    assert classes(joined(tree, 1, "a"), RTM_NEWTCLASS) == [job_class(1)]
    assert classes(tree.remove(0), RTM_DELTCLASS) == [job_class(0)]
    last = classes(tree.remove(1), RTM_DELTCLASS)
    assert last[0] == job_class(1)
    assert len(last) == 2
    assert not tree.remove(1)


def test_without_a_rate_there_are_no_groups_and_only_ceilings() -> None:
    tree = Tree(7, 0)
    assert not tree.holds(Share())
    assert not tree.holds(Share(guaranteed_mbps=5))
    share = Share(ceiling_mbps=5)
    assert tree.holds(share)
    assert classes(tree.add(3, tree.member("a", 1.0, share), "htvj3"), RTM_NEWTCLASS) == [job_class(3)]
    assert not tree.rebalance()
    assert classes(tree.remove(3), RTM_DELTCLASS) == [job_class(3)]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc")), max_size=40))
def test_only_changes_are_told_and_every_class_is_removed(steps: list[tuple[int, str]]) -> None:
    tree, there = Tree(7, MBPS), set()
    for number, group in steps:
        requests = tree.remove(number) if number in tree else joined(tree, number, group)
        there |= set(classes(requests, RTM_NEWTCLASS))
        there -= set(classes(requests, RTM_DELTCLASS))
        changed = classes(tree.rebalance(), RTM_NEWTCLASS)
        assert set(changed) <= there
        assert not tree.rebalance()
    for number in range(10):
        there -= set(classes(tree.remove(number), RTM_DELTCLASS))
    assert not there


def test_what_another_broker_left_is_taken_over_and_the_rest_removed() -> None:
    tree = Tree(7, MBPS)
    left = [Class(1, 0, 0, 0), Class(2, 0, 0, 0), Class(3, 1, 0, 0), Class(9, 1, 0, 0)]
    left += [Class(job_class(0), 3, 0, 0), Class(job_class(5), 9, 0, 0)]
    requests = tree.adopt(left, {0: tree.member("a", 1.0, Share())})
    assert classes(requests, RTM_DELTCLASS) == [job_class(5), 9]
    assert sorted(classes(tree.rebalance(), RTM_NEWTCLASS)) == [3, job_class(0)]
    assert len(classes(joined(tree, 1, "a"), RTM_NEWTCLASS)) == 1


@pytest.mark.parametrize("rate", [0.001, 1e6])
def test_the_least_and_the_most_that_can_be_asked_for(rate: float) -> None:
    tree = Tree(7, rate)
    for number in range(256):
        joined(tree, number)
    assert len(classes(tree.rebalance(), RTM_NEWTCLASS)) == 257


rates = st.floats(0, 1e6)
shares = st.builds(Share, rates, rates)


@given(st.builds(Decision, up=shares, down=shares, weight=st.floats(0.001, 1e5), group=st.text()))
def test_notes_are_short_and_readable(decision: Decision) -> None:
    text = Note.of(decision).encode()
    assert len(text.encode()) < 256
    assert Note.decode(text) == Note.of(decision)
