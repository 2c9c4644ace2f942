from __future__ import annotations

from htcondor_vpn.tunnel.catching.fair_share import FairShare


def taken(share: FairShare, link: int) -> int:
    """How many of very many one link gets."""
    return sum(share.take(link) for _ in range(1000))


def test_one_gets_half_and_there_is_always_room_for_another() -> None:
    share = FairShare(64)
    assert [taken(share, link) for link in range(6)] == [32, 16, 8, 4, 2, 1]


def test_what_is_released_can_be_taken_again() -> None:
    share = FairShare(8)
    assert taken(share, 1) == 4
    for _ in range(4):
        share.release(1)
    assert taken(share, 2) == 4
