from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.condor.job_ad import parse_ad
from htcondor_vpn.jobnet.policy import LOWEST_MBPS, Rates, Refusal, SubCode, decide
from htcondor_vpn.settings import Settings

SETTINGS = Settings.load(
    overrides={
        "HTCONDOR_VPN_JOB_UP_MBPS": "10",
        "HTCONDOR_VPN_JOB_DOWN_MBPS": "20",
        "HTCONDOR_VPN_JOB_MAX_MBPS": "100",
    }
)


def test_job_that_asks_for_nothing_gets_the_knobs() -> None:
    assert decide({}, SETTINGS) == Rates(10, 20)
    assert decide({"vpnbandwidthmbps": None}, SETTINGS) == Rates(10, 20)


@pytest.mark.parametrize("asked", [LOWEST_MBPS, 1, 99.5, 100])
def test_job_gets_what_it_asks_for_up_to_the_maximum(asked: float) -> None:
    assert decide({"vpnbandwidthmbps": asked}, SETTINGS) == Rates(asked, asked)


@pytest.mark.parametrize(
    ("value", "sub_code"),
    [
        ("abc", SubCode.NOT_A_NUMBER),
        ('"7"', SubCode.NOT_A_NUMBER),
        ("true", SubCode.NOT_A_NUMBER),
        ("5 * 2", SubCode.NOT_A_NUMBER),
        ("10M", SubCode.NOT_A_NUMBER),
        ('real("NaN")', SubCode.NOT_A_NUMBER),
        ('real("-INF")', SubCode.NOT_A_NUMBER),
        ("1e999", SubCode.NOT_A_NUMBER),
        ("9" * 400, SubCode.NOT_A_NUMBER),
        ("-1", SubCode.NOT_POSITIVE),
        ("-0.0", SubCode.NOT_POSITIVE),
        ("0.01", SubCode.TOO_LOW),
        ("100.0001", SubCode.TOO_HIGH),
        ("999999999999999999999", SubCode.TOO_HIGH),
    ],
)
def test_request_that_makes_no_sense_is_refused(value: str, sub_code: SubCode) -> None:
    with pytest.raises(Refusal) as caught:
        decide(parse_ad(f"VpnBandwidthMbps = {value}"), SETTINGS)
    assert caught.value.sub_code is sub_code
    assert "VpnBandwidthMbps is " in caught.value.message
    assert "100" in caught.value.message
    assert "\n" not in caught.value.message


@given(st.text(alphabet=st.characters(blacklist_characters="\n"), max_size=80))
def test_whatever_a_job_asks_it_gets_a_sensible_rate_or_a_reason(text: str) -> None:
    try:
        rates = decide(parse_ad(f"VpnBandwidthMbps = {text}"), SETTINGS)
    except (Refusal, ValueError):
        return
    for rate in rates:
        assert math.isfinite(rate)
        assert LOWEST_MBPS <= rate <= 100


def test_sub_codes_are_what_a_hook_may_say() -> None:
    assert all(1 <= code <= 299 for code in SubCode if code < SubCode.BROKER_UNREACHABLE)
    assert SubCode.BROKER_UNREACHABLE == 300
