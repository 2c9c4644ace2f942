from __future__ import annotations

import socket

import pytest

from htcondor_vpn.linux.loop import Loop


def test_a_timer_that_raises_takes_no_other_with_it() -> None:
    loop = Loop()
    ran = []

    def failing() -> None:
        raise LookupError

    loop.after(0, failing)
    loop.after(0, lambda: ran.append(1))
    with pytest.raises(LookupError):
        loop.turn()
    loop.turn()
    assert ran == [1]
    loop.turn()
    assert ran == [1]


def test_a_timer_may_be_set_anew_by_its_own_action() -> None:
    loop = Loop()
    ran = []

    def again() -> None:
        ran.append(1)
        loop.after(0, again)

    loop.after(0, again)
    loop.turn()
    loop.turn()
    assert ran == [1, 1]


def test_what_is_over_is_not_taken_for_what_has_got_its_number() -> None:
    """Two are readable at once; the first one's action ends the other, and opens what gets its number."""
    loop = Loop()
    pairs = [socket.socketpair() for _ in range(2)]
    ours = [pair[0] for pair in pairs]
    opened: list[socket.socket] = []
    called = []

    def act(which: int) -> None:
        called.append(which)
        other = ours[1 - which]
        number = other.fileno()
        loop.forget(other)
        other.close()
        while number not in [sock.fileno() for sock in opened]:
            opened.extend(socket.socketpair())
        loop.watch(number, lambda: called.append(-1))

    loop.watch(ours[0], lambda: act(0))
    loop.watch(ours[1], lambda: act(1))
    for _, theirs in pairs:
        theirs.send(b"x")
    loop.turn()
    assert len(called) == 1
    assert called[0] in (0, 1)
    for sock in (*sum(pairs, ()), *opened):
        sock.close()
