"""The rules as texts: what a policy becomes."""

from htcondor_vpn.jobnet.counting.policies import Reach
from htcondor_vpn.jobnet.counting.rules import policy_rules, table_rules
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.destinations import parse_destination


def destinations(*texts):
    return tuple(map(parse_destination, texts))


def rules(chain, text):
    start = f"add rule inet htcondor_vpn_jobs {chain} "
    return [line[len(start) :] for line in text.splitlines() if line.startswith(start)]


def test_networks_of_a_kind_share_a_rule_and_overlap_is_no_matter():
    text = policy_rules(
        "p", (), destinations("10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "192.0.2.1 tcp port 25"), ()
    )
    assert rules("p_sent", text) == [
        "ip daddr { 10.0.0.0/8 } goto refuse",
        "ip6 daddr { 2001:db8::/32 } goto refuse",
        "ip daddr { 192.0.2.1/32 } tcp dport 25 goto refuse",
        "goto p_classes",
    ]


def test_what_is_not_allowed_is_refused():
    text = policy_rules("p", destinations("192.0.2.7 tcp port 1094-1095"), (), ())
    assert rules("p_sent", text) == ["ip daddr { 192.0.2.7/32 } tcp dport 1094-1095 goto p_classes", "goto refuse"]


def test_the_first_class_counts_both_ways():
    text = policy_rules("p", (), (), [destinations("10.0.0.0/8 port 80"), destinations("0.0.0.0/0 udp")])
    assert rules("p_classes", text)[:2] == [
        "ip daddr { 10.0.0.0/8 } meta l4proto { tcp, udp } th dport 80 meta mark set 17 goto count_sent",
        "meta nfproto ipv4 meta l4proto udp meta mark set 18 goto count_sent",
    ]
    assert rules("p_received", text)[0] == (
        "ip saddr { 10.0.0.0/8 } meta l4proto { tcp, udp } th sport 80 meta mark set 17 goto count_received"
    )


def test_the_same_reach_has_the_same_chain_in_every_broker():
    reach = Reach.of(Decision(denied=destinations("10.0.0.0/8"), classes={"campus": destinations("a.example udp")}))
    assert Reach.from_message(reach.message()) == reach
    assert Reach.from_message(reach.message()).chain == reach.chain
    assert reach.chain != Reach.of(Decision()).chain
    assert reach.named
    assert not Reach.of(Decision()).named


def test_a_kernel_without_logs_gets_a_table_without_them():
    assert "log group" in table_rules(logging=True)
    assert "log" not in table_rules(logging=False)
