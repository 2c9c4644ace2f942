from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

classad2 = pytest.importorskip("classad2", reason="a policy's expressions need HTCondor's Python bindings")

from htcondor_vpn.errors import PolicyError  # noqa: E402
from htcondor_vpn.jobnet.policy.decision import Decision, Share  # noqa: E402
from htcondor_vpn.jobnet.policy.expressions import Ads  # noqa: E402
from htcondor_vpn.jobnet.policy.file_policy import FilePolicy  # noqa: E402
from htcondor_vpn.jobnet.policy.matching import Matcher  # noqa: E402
from htcondor_vpn.jobnet.policy.records import record_of  # noqa: E402
from htcondor_vpn.jobnet.policy.refusal import Refusal, SubCode  # noqa: E402
from htcondor_vpn.jobnet.policy.rules import compile_rules  # noqa: E402
from htcondor_vpn.jobnet.policy.source import parse_source  # noqa: E402
from htcondor_vpn.settings import Settings  # noqa: E402

KNOBS = {"JOB_UP_MBPS": "7", "JOB_DOWN_MBPS": "8", "JOB_MAX_MBPS": "50", "UP_MBPS": "500"}


def policy(text: str, **knobs: str) -> FilePolicy:
    problems: list[PolicyError] = []
    rules = compile_rules(parse_source(text, "policy", problems), problems)
    assert problems == []
    overrides = {f"HTCONDOR_VPN_{name}": value for name, value in {**KNOBS, **knobs}.items()}
    return FilePolicy(rules, Settings.load(overrides=overrides))


def decide(text: str, job: str, machine: str = "", **knobs: str) -> Decision:
    return policy(text, **knobs).granted(job, machine).decision


def refusal(text: str, job: str, machine: str = "") -> Refusal:
    with pytest.raises(Refusal) as caught:
        decide(text, job, machine)
    return caught.value


def test_first_match_wins_and_the_knobs_are_last() -> None:
    rules = "[rule a]\nwhen = TARGET.X == 1\n[rule b]\nwhen = TARGET.X >= 1\nup_mbps = 3\n"
    assert decide(rules, "X = 1").rule == "a"
    assert decide(rules, "X = 2").rule == "b"
    assert decide(rules, "X = 0") == Decision("knobs", up=Share(0, 7), down=Share(0, 8))
    assert decide(rules, "").rule == "knobs"


@pytest.mark.parametrize(
    ("rule", "job", "up"),
    [
        ("", "", 7),
        ("", "VpnUpMbps = 50", 50),
        ("up_mbps = 20", "", 20),
        ("up_mbps = 20", "VpnUpMbps = 5", 5),
        ("up_mbps = 20\nmax_up_mbps = 90", "", 20),
        ("up_mbps = 20\nmax_up_mbps = 90", "VpnUpMbps = 90", 90),
        ("max_up_mbps = 5", "", 5),
        ("up_mbps = 20\nmax_up_mbps = 5", "", 5),
        ("up_mbps = 0\nmax_up_mbps = 5", "", 5),
        ("up_mbps = 0\nmax_up_mbps = 0", "VpnUpMbps = 450", 450),
        ("up_mbps = 0", "", 0),
        ("up_mbps = 0", "VpnUpMbps = 50", 50),
        ("up_mbps = 1000", "", 500),
        ("up_mbps = 10 * TARGET.RequestCpus", "RequestCpus = 1 + 1", 20),
        ("up_mbps = 10 * RequestCpus + Cpus", "RequestCpus = 2\nCpus = 1000", 28),
    ],
)
def test_ceiling(rule: str, job: str, up: float) -> None:
    assert decide(f"[rule a]\n{rule}", job, "Cpus = 8").up.ceiling_mbps == up


@pytest.mark.parametrize(
    ("rule", "job", "most"),
    [
        ("", "VpnUpMbps = 51", 50),
        ("up_mbps = 20", "VpnUpMbps = 21", 20),
        ("max_up_mbps = 9", "VpnBandwidthMbps = 10", 9),
    ],
)
def test_request_beyond_what_the_rule_allows(rule: str, job: str, most: float) -> None:
    refused = refusal(f"[rule a]\n{rule}", job)
    assert refused.sub_code is SubCode.TOO_HIGH
    assert f"at most {most} Mbit/s" in refused.message


def test_guarantee_is_not_above_the_ceiling_nor_the_link() -> None:
    assert decide("[rule a]\nguaranteed_up_mbps = 30", "").up == Share(7, 7)
    assert decide("[rule a]\nup_mbps = 0\nguaranteed_up_mbps = 900", "").up == Share(500, 0)
    assert decide("[rule a]\nup_mbps = 40\nguaranteed_up_mbps = 30", "").up == Share(30, 40)


def test_weight_and_group_of_a_rule() -> None:
    decision = decide('[rule a]\nweight = 2 * MY.Cpus\ngroup = strcat("x.", TARGET.Owner)', 'Owner = "al"', "Cpus = 4")
    assert (decision.weight, decision.group) == (8, "x.al")


def test_flight_recorder() -> None:
    assert decide("[rule a]\nflight_recorder = always", "VpnFlightRecorder = false").recorded
    assert decide("[rule a]\nflight_recorder = on-request", "VpnFlightRecorder = true").recorded
    assert not decide("[rule a]\nflight_recorder = never", "VpnFlightRecorder = false").recorded
    refused = refusal("[rule a]\nflight_recorder = never", "VpnFlightRecorder = true")
    assert refused.sub_code is SubCode.RECORDER_NOT_ALLOWED


NETWORKS = """
[network slow]
through = tunnel
allow = 192.0.2.0/24
deny = 192.0.2.7
[rule a]
network = tunnel, Slow
deny = 10.0.0.0/8
"""


def test_named_network() -> None:
    decision = decide(NETWORKS, 'VpnNetwork = "SLOW"')
    assert (decision.network, decision.through) == ("slow", "tunnel")
    assert [str(each) for each in decision.allowed] == ["192.0.2.0/24"]
    assert [str(each) for each in decision.denied] == ["10.0.0.0/8", "192.0.2.7/32"]
    decision = decide(NETWORKS, "")
    assert (decision.network, decision.allowed) == ("tunnel", ())
    assert refusal(NETWORKS, 'VpnNetwork = "none"').sub_code is SubCode.NETWORK_NOT_ALLOWED


@pytest.mark.parametrize("job", ["", 'VpnNetwork = "slow"\nVpnFlightRecorder = true\nVpnUpMbps = 3\nAcctGroup = "g"'])
def test_record_of_a_decision_is_the_decision(job: str) -> None:
    rules = policy(f"[class c]\ndestinations = ::/0\n{NETWORKS}")
    decision = rules.granted(job, "Cpus = 3").decision
    assert rules.restored(json.loads(json.dumps(record_of(decision)))) == decision


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("when = TARGET.Owner", "policy:2: when = TARGET.Owner (of rule a) is neither true nor false"),
        ("when = TARGET.Owner + 1", "policy:2: when = TARGET.Owner + 1 (of rule a) is an error"),
        ("up_mbps = TARGET.N", "is undefined"),
        ("up_mbps = -TARGET.One", "is -1, which is not between"),
        ("down_mbps = TARGET.One / 0.0", "is an error"),
        ("weight = 0 * TARGET.One", "which is not between"),
        ("group = TARGET.One", "is 1, which is no text"),
        ("up_mbps = TARGET.Loop", "is undefined"),
        ("up_mbps = MY.Loop", "is undefined"),
    ],
)
def test_rule_that_cannot_decide_sends_the_job_elsewhere(rule: str, says: str) -> None:
    refused = refusal(f"[rule a]\n{rule}", 'Owner = "x"\nOne = 1\nLoop = Loop + 1', "Loop = Circle\nCircle = Loop")
    assert refused.sub_code is SubCode.NOT_DECIDED
    assert says in refused.message


@pytest.mark.parametrize(
    "ad", ["no ad", "A = 1\nnonsense\nB = 2", "A = (1", 'A = "x', "[A = 1]", "A == 1", "A = 1\0\nB"]
)
def test_ad_that_is_none(ad: str) -> None:
    assert refusal("[rule a]", ad).sub_code is SubCode.NOT_AN_AD
    assert refusal("[rule a]", "", ad).sub_code is SubCode.NOT_DECIDED, "no fault of the job's"


@pytest.mark.parametrize("when", ['stringListMember(TARGET.Owner, "al, bo")', 'splitUserName(TARGET.User)[0] == "al"'])
def test_htcondors_own_functions(when: str) -> None:
    rule = f"[rule a]\nwhen = {when}"
    assert decide(rule, 'Owner = "al"\nUser = "al@example.org"').rule == "a"
    assert decide(rule, 'Owner = "cy"\nUser = "cy@example.org"').rule == "knobs"


def test_ad_in_another_encoding() -> None:
    latin = b'Owner = "Andr\xe9"\nX = 1'.decode(errors="surrogateescape")
    assert decide("[rule a]\nwhen = TARGET.X == 1", latin).rule == "a"


@pytest.mark.parametrize("key", ["up_mbps", "max_up_mbps", "down_mbps", "max_down_mbps"])
def test_no_ad_gets_rid_of_a_ceiling(key: str) -> None:
    rule = f"[rule few]\n{key} = 100 * TARGET.RequestCpus"
    assert decide(rule, "RequestCpus = 2").rule == "few"
    with pytest.raises(Refusal, match=rf"{key} = 100 \* TARGET.RequestCpus .* is 0, which is not between 0.1 and"):
        decide(rule, "RequestCpus = 0")
    assert decide(f"[rule any]\n{key} = 0", "RequestCpus = 0").rule == "any"
    assert decide("[rule any]\nguaranteed_up_mbps = TARGET.RequestCpus", "RequestCpus = 0").rule == "any"


SCALARS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(lambda value: f'real("{value}")' if not math.isfinite(value) else repr(value)),
    st.text(max_size=12).map(json.dumps),
    st.sampled_from(
        ["true", "undefined", "error", "1/0", "VpnUpMbps", "{1}", "[a=1]", "-0.0", "TARGET.Cpus", "5 * RequestCpus"]
    ),
)
NAMES = ["VpnUpMbps", "VpnDownMbps", "VpnBandwidthMbps", "VpnNetwork", "VpnFlightRecorder", "RequestCpus", "Owner"]
MAXIMA = """
[network slow]
through = tunnel
[rule few]
when = TARGET.RequestCpus <= 2
max_up_mbps = 20
max_down_mbps = 5 * TARGET.RequestCpus
guaranteed_up_mbps = 30
network = slow
[rule rest]
up_mbps = 10
down_mbps = 11
flight_recorder = never
"""


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES), SCALARS))
@example({"VpnDownMbps": "11.0", "RequestCpus": "0"})
def test_no_ad_gets_more_than_its_rule_allows(ad: dict[str, str]) -> None:
    try:
        decision = decide(MAXIMA, "".join(f"{name} = {value}\n" for name, value in ad.items()), "Cpus = 8")
    except Refusal:
        return
    most = {"few": (20, 10), "rest": (10, 11)}[decision.rule]
    for share, maximum in zip((decision.up, decision.down), most):
        assert 0.1 <= share.ceiling_mbps <= maximum
        assert 0 <= share.guaranteed_mbps <= share.ceiling_mbps
    assert decision.network == {"few": "slow", "rest": "tunnel"}[decision.rule]
    assert decision.rule == "few" or not decision.recorded
    assert decision.weight == 8


CONDITIONS = st.sampled_from(
    [
        'TARGET.Owner == "al"', 'target.owner == "AL" && TARGET.X > 1', '(TARGET.Owner == "bo")', "TARGET.X == 2",
        'TARGET.Owner == "al" || TARGET.X == 2', 'TARGET.Owner == "bo" ? false : true', "TARGET.X", 'Owner == "cy"',
        'TARGET.Owner == "a\\"l"', 'TARGET.X == "2"', 'TARGET.X == "2" && true', "undefined", "TARGET.Owner",
        'TARGET.Owner =?= "al"', 'MY.Owner == "al" && TARGET.X == 2', 'TARGET.Y == "" && TARGET.X == 2',
    ]
)  # fmt: skip


def outcome(find: Any) -> Any:
    try:
        return find()
    except Refusal as refused:
        return refused.message


@given(
    st.lists(CONDITIONS, max_size=8),
    st.sampled_from(["", 'Owner = "Al"', 'Owner = "bo"', 'Owner = "cy"', "Owner = 5", "Owner = error", 'Owner = ""']),
    st.sampled_from(["", "X = 2", "X = 1", 'X = "2"', "X = error"]),
)
def test_rules_are_found_as_if_they_were_asked_one_by_one(conditions: list[str], owner: str, x: str) -> None:
    text = "\n".join(f"[rule r{number}]\nwhen = {when}" for number, when in enumerate(conditions))
    problems: list[PolicyError] = []
    rules = compile_rules(parse_source(text, "policy", problems), problems).rules
    ads = Ads(f"{owner}\n{x}\n", 'Owner = "al"')
    expected = outcome(lambda: next((rule for rule in rules if rule.matches(ads)), None))
    assert outcome(lambda: Matcher(rules).first(ads)) == expected


def test_one_of_ten_thousand_rules() -> None:
    text = "\n".join(
        f'[rule u{number}]\nwhen = TARGET.Owner == "user{number}" && TARGET.RequestCpus > 1\nup_mbps = 5'
        for number in range(10_000)
    )
    assert decide(f'{text}\n[rule last]\nwhen = regexp("^z", TARGET.Owner)', 'Owner = "zed"').rule == "last"
    assert decide(text, 'Owner = "user9999"\nRequestCpus = 2').rule == "u9999"
