"""What a gateway's program hands on to the next one of the same process."""

import json
import os
import select
import sys
from dataclasses import asdict

import pytest

from htcondor_vpn.gateway.operation import inheritance
from htcondor_vpn.gateway.operation.inheritance import Check, Heir, Inheritance, inherited, only_checks

VARIABLE = "HTCONDOR_VPN_GATEWAY_INHERITS"


@pytest.fixture
def given(monkeypatch):
    """Hands on what it is called with."""

    def give(known):
        memory = os.memfd_create("test")
        os.write(memory, json.dumps(known).encode())
        monkeypatch.setenv(VARIABLE, str(memory))

    return give


def test_what_is_handed_on_is_taken_once(given):
    listener, seats = os.pipe()
    channel = os.dup(seats)
    for descriptor in (listener, seats, channel):
        os.set_inheritable(descriptor, True)
    before = Inheritance([listener], seats, [Heir(7, channel, 3)], 2, 5.5)
    given(asdict(before))
    assert inherited() == before
    assert inherited() is None
    for descriptor in (listener, seats, channel):
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_another_version_may_know_more_or_less(given):
    ends = os.pipe()
    worker = {"pid": 7, "channel": ends[1], "column": 3, "colour": "red"}
    given({"listeners": [], "seats": ends[0], "workers": [worker], "shoes": 2})
    found = inherited()
    assert (found.workers, found.generation) == ([Heir(7, ends[1], 3)], 0)
    for end in ends:
        os.close(end)


def test_a_check_inherits_nothing(monkeypatch):
    monkeypatch.setenv(VARIABLE, "check")
    assert inherited() is None
    assert only_checks()
    monkeypatch.delenv(VARIABLE)
    assert not only_checks()


def test_a_check_that_says_very_much_ends(monkeypatch):
    code = "import sys; sys.stderr.write('x' * 300_000 + 'that is why'); sys.exit(3)"
    monkeypatch.setattr(inheritance, "_argv", lambda: [sys.executable, "-c", code])
    check = Check()
    assert select.select([check.pidfd], [], [], 20)[0]
    os.close(check.pidfd)
    code, said = check.reap()
    assert (code, said[-12:], len(said)) == (3, "xthat is why", 4096)
