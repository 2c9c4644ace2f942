from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.linux import links, shaping, traffic_control
from htcondor_vpn.linux.netlink import attribute, attributes


@given(st.floats(shaping.LOWEST_BPS, shaping.HIGHEST_BPS))
def test_burst_and_queue_fit_the_rate(rate_bps: float) -> None:
    limit = shaping.limit_for(rate_bps)
    assert limit.rate_bps == int(rate_bps)
    assert limit.burst_bytes >= 3_000
    assert limit.burst_bytes * 8 / rate_bps <= 3.1  # seconds, at the lowest rate
    assert 4 * 65_536 <= limit.queue_bytes <= 64 << 20
    assert limit.turn_bytes >= 1_514
    for request in (traffic_control.add_class(7, 5, limit), traffic_control.change_class(7, 5, limit)):
        assert len(request.body) < 300
    for kind in (traffic_control.BFIFO, traffic_control.FQ_CODEL):
        assert kind.encode() in traffic_control.set_queue(7, 5, kind, limit).body


@pytest.mark.parametrize("rate_bps", [0, -1, 7_999, 1e13, float("nan"), float("inf")])
def test_rate_outside_of_what_the_kernel_can(rate_bps: float) -> None:
    with pytest.raises(ValueError, match="bit/s"):
        shaping.limit_for(rate_bps)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=50))))
def test_attributes_survive(pairs: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(attribute(kind, value) for kind, value in pairs))) == pairs


@given(st.binary(max_size=100))
def test_broken_attributes_end_the_run(data: bytes) -> None:
    assert all(isinstance(value, bytes) for _, value in attributes(data))


def test_ends_of_a_link_differ() -> None:
    here, there = (links.End(name, 5, bytes(6), 65_536) for name in "ab")
    with pytest.raises(ValueError, match="different"):
        links.make_veth(here, there, 0, mtu=1500)


def test_ceiling_below_the_rate() -> None:
    with pytest.raises(ValueError, match="no more than the second"):
        shaping.limit_for(2e6, 1e6)


@given(st.floats(shaping.LOWEST_BPS, shaping.HIGHEST_BPS))
def test_segments_are_short_for_the_rate(rate_bps: float) -> None:
    size = shaping.segment_bytes(rate_bps)
    assert 8_704 <= size <= shaping.LARGEST_SEGMENT_BYTES
    assert size * 8 / rate_bps <= 0.0021 or size == 8_704


@given(st.floats(shaping.LOWEST_BPS, shaping.HIGHEST_BPS))
def test_a_high_rate_has_the_kernels_large_segments(rate_bps: float) -> None:
    size = shaping.segment_bytes(rate_bps, 524_280)
    assert shaping.segment_bytes(rate_bps) <= size <= 524_280
    assert size == shaping.segment_bytes(rate_bps) or size * 8 / rate_bps <= 0.0002
    assert size == 524_280 or rate_bps < 21e9
