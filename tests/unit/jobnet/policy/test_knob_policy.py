from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.policy.decision import NONE, TUNNEL, Decision, Share
from htcondor_vpn.jobnet.policy.granting import LOWEST_MBPS
from htcondor_vpn.jobnet.policy.knob_policy import KnobPolicy
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode
from htcondor_vpn.settings import Settings

SETTINGS = Settings.load(
    overrides={
        "HTCONDOR_VPN_JOB_UP_MBPS": "10",
        "HTCONDOR_VPN_JOB_DOWN_MBPS": "20",
        "HTCONDOR_VPN_JOB_MAX_MBPS": "100",
    }
)


def decide(ad: str, machine: str = "") -> Decision:
    return KnobPolicy(SETTINGS).granted(ad, machine).decision


def ceilings(decision: Decision) -> tuple[float, float]:
    return decision.up.ceiling_mbps, decision.down.ceiling_mbps


def test_job_that_asks_for_nothing_gets_the_knobs() -> None:
    expected = Decision("knobs", TUNNEL, Share(0, 10), Share(0, 20))
    assert decide("") == expected
    assert decide("VpnBandwidthMbps = undefined") == expected


@pytest.mark.parametrize("asked", [LOWEST_MBPS, 1, 99.5, 100])
def test_job_gets_what_it_asks_for_up_to_the_maximum(asked: float) -> None:
    assert ceilings(decide(f"VpnBandwidthMbps = {asked}")) == (asked, asked)


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
        decide(f"VpnBandwidthMbps = {value}")
    assert caught.value.sub_code is sub_code
    assert "VpnBandwidthMbps is " in caught.value.message
    assert "100" in caught.value.message
    assert "\n" not in caught.value.message


@given(st.text(alphabet=st.characters(blacklist_characters="\n"), max_size=80))
def test_whatever_a_job_asks_it_gets_a_sensible_rate_or_a_reason(text: str) -> None:
    try:
        rates = ceilings(decide(f"VpnBandwidthMbps = {text}"))
    except Refusal:
        return
    for rate in rates:
        assert math.isfinite(rate)
        assert LOWEST_MBPS <= rate <= 100


def test_sub_codes_are_what_a_hook_may_say() -> None:
    assert all(1 <= code <= 299 for code in SubCode if code < SubCode.BROKER_UNREACHABLE)
    assert SubCode.BROKER_UNREACHABLE == 300


@pytest.mark.parametrize(
    ("job", "machine", "weight"),
    [
        ("RequestCpus = 2\nCpusProvisioned = 4", "Cpus = 8", 8),
        ("RequestCpus = 2\nCpusProvisioned = 4", "", 4),
        ("RequestCpus = 2", "Cpus = undefined", 2),
        ("RequestCpus = 1 + 1", "", 1),
        ("RequestCpus = 0", "Cpus = -3", 1),
    ],
)
def test_weight_is_the_cpus_of_the_slot(job: str, machine: str, weight: float) -> None:
    assert decide(job, machine).weight == weight


@pytest.mark.parametrize(
    ("ad", "group"),
    [
        ('AcctGroup = "group_cms"\nUser = "alice@example.org"\nOwner = "alice"', "group_cms"),
        ('User = "alice@example.org"\nOwner = "alice"', "alice@example.org"),
        ('AcctGroup = undefined\nOwner = "alice"', "alice"),
        ("AcctGroup = 7", ""),
    ],
)
def test_group_is_the_accounting_group_or_the_user(ad: str, group: str) -> None:
    assert decide(ad).group == group


def test_flight_recorder_runs_when_a_job_asks_for_it() -> None:
    assert decide("VpnFlightRecorder = true").recorded
    assert not decide("VpnFlightRecorder = false").recorded
    assert not decide("VpnFlightRecorder = undefined").recorded
    with pytest.raises(Refusal) as caught:
        decide('VpnFlightRecorder = "yes"')
    assert caught.value.sub_code is SubCode.NOT_A_BOOLEAN


@pytest.mark.parametrize(("ad", "up_and_down"), [
    ("VpnUpMbps = 3", (3, 20)),
    ("VpnDownMbps = 4", (10, 4)),
    ("VpnUpMbps = 3\nVpnBandwidthMbps = 50", (3, 50)),
])  # fmt: skip
def test_rate_of_one_direction(ad: str, up_and_down: tuple[float, float]) -> None:
    assert ceilings(decide(ad)) == up_and_down


@pytest.mark.parametrize("asked", ['"host"', '"campus"', "1", "true", "tunnel"])
def test_network_that_a_job_may_not_have(asked: str) -> None:
    with pytest.raises(Refusal, match='this job may have "tunnel" or "none"') as caught:
        decide(f"VpnNetwork = {asked}")
    assert caught.value.sub_code is SubCode.NETWORK_NOT_ALLOWED


def test_job_may_do_without_a_network() -> None:
    assert decide('VpnNetwork = "NONE"').network == NONE


def test_rates_are_not_above_those_of_the_whole_pilot() -> None:
    settings = Settings.load(overrides={"HTCONDOR_VPN_UP_MBPS": "5"})
    granted = KnobPolicy(settings).granted("VpnBandwidthMbps = 50", "")
    assert ceilings(granted.decision) == (5, 50)
    assert "HTCONDOR_VPN_UP_MBPS" in granted.sources["up.ceiling_mbps"]
    assert granted.sources["down.ceiling_mbps"] == "the job's VpnBandwidthMbps"


def test_ad_that_is_none() -> None:
    with pytest.raises(Refusal) as caught:
        decide("this is no ad")
    assert caught.value.sub_code is SubCode.NOT_AN_AD
