from __future__ import annotations

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
