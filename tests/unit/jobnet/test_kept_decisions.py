from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from htcondor_vpn.jobnet.kept_decisions import KeptDecisions
from htcondor_vpn.jobnet.policy.decision import Decision, Share
from htcondor_vpn.jobnet.policy.records import decision_of

ME = os.getpid()


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("decisions")
    yield descriptor
    os.close(descriptor)


def test_the_next_broker_knows_what_was_decided(memory: int) -> None:
    decision = Decision("big", up=Share(1, 2), weight=3.5, group="é", recorded=True)
    KeptDecisions(memory, decision_of).keep(ME, "ap#1.0#2", decision)
    kept = KeptDecisions(memory, decision_of).of(ME)
    assert kept is not None
    assert (kept.job, kept.decision) == ("ap#1.0#2", decision)


def test_the_first_decision_stands(memory: int) -> None:
    kept = KeptDecisions(memory, decision_of)
    kept.keep(ME, "one", Decision("first"))
    kept.keep(ME, "two", Decision("second"))
    for each in (kept, KeptDecisions(memory, decision_of)):
        found = each.of(ME)
        assert found is not None
        assert (found.job, found.decision.rule) == ("one", "first")


def test_a_decision_goes_with_its_starter(memory: int) -> None:
    starter = subprocess.Popen(["/bin/sleep", "1000"])
    kept = KeptDecisions(memory, decision_of)
    kept.keep(starter.pid, "", Decision("gone"))
    starter.kill()
    starter.wait()
    assert kept.of(starter.pid) is None
    with pytest.raises(ProcessLookupError):
        kept.keep(starter.pid, "", Decision())


def test_memory_does_not_grow_with_the_jobs_that_have_been(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = {(ME, 0)}
    monkeypatch.setattr("htcondor_vpn.jobnet.kept_decisions.started_at", lambda pid: 0)
    monkeypatch.setattr("htcondor_vpn.jobnet.kept_decisions._lives", lambda *key: key in lives)
    kept = KeptDecisions(memory, decision_of)
    kept.keep(ME, "mine", Decision("mine"))
    for pid in range(ME + 1, ME + 3000):
        kept.keep(pid, "", Decision())
    assert os.fstat(memory).st_size < 200_000
    found = KeptDecisions(memory, decision_of).of(ME)
    assert found is not None
    assert found.job == "mine"


def test_what_a_dying_broker_wrote_in_part_is_passed_over(memory: int) -> None:
    kept = KeptDecisions(memory, decision_of)
    kept.keep(ME, "", Decision("whole"))
    size = os.fstat(memory).st_size
    os.pwrite(memory, b'{"pid": 5, "started": 7, "job": "", "deci', size)
    os.pwrite(memory, b'\n{"pid": 5, "started": 7, "job": "", "decision": {"rule": "x"}}\n[]\n', size + 41)
    found = KeptDecisions(memory, decision_of).of(ME)
    assert found is not None
    assert found.decision.rule == "whole"
