"""The rules as texts: what a policy becomes."""

from htcondor_vpn.jobnet.counting.policies import Reach
from htcondor_vpn.jobnet.counting.rules import counts_look_ups, policy_rules, table_rules
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
    assert rules("p_sent", text)[-5:] == [
        "ip6 daddr { ::1/128, fd68:7463:6f6e::/48, fe80::/10, ff00::/8 } goto count_sent",
        "ip daddr { 10.0.0.0/8 } goto refuse",
        "ip6 daddr { 2001:db8::/32 } goto refuse",
        "ip daddr { 192.0.2.1/32 } tcp dport 25 goto refuse",
        "goto p_classes",
    ]


def decided(rules, family, side):
    """What the map of that family says, by spans of addresses."""
    (found,) = [rule for rule in rules if rule.startswith(f"{family} {side}addr vmap")]
    elements = found.partition("{ ")[2].rstrip(" }").split(", ")
    return dict(element.split(" : ") for element in elements)


def test_what_is_not_allowed_is_refused():
    text = policy_rules("p", destinations("192.0.2.7 tcp port 1094-1095"), (), ())
    sent = rules("p_sent", text)
    assert sent[-2:] == ["ip daddr { 192.0.2.7/32 } tcp dport 1094-1095 goto p_classes", "goto refuse"]
    assert decided(sent, "ip", "d") == {
        "0.0.0.0-126.255.255.255": "goto refuse",
        "127.0.0.0-127.255.255.255": "goto count_sent",
        "128.0.0.0-192.0.2.6": "goto refuse",
        "192.0.2.8-198.17.255.255": "goto refuse",
        "198.18.0.0-198.19.255.255": "goto count_sent",
        "198.20.0.0-255.255.255.255": "goto refuse",
    }


def test_addresses_alone_take_one_look_up_and_no_rule_more():
    text = policy_rules("p", (), destinations("10.0.0.0/8"), [destinations("10.1.0.0/16"), destinations("0.0.0.0/0")])
    assert [rule.partition(" {")[0] for rule in rules("p_sent", text)] == [
        "ip daddr vmap", "ip6 daddr vmap", "goto p_classes",
    ]  # fmt: skip
    assert [rule.partition(" {")[0] for rule in rules("p_classes", text)] == ["ip daddr vmap", "goto count_sent"]
    assert decided(rules("p_classes", text), "ip", "d")["10.1.0.0-10.1.255.255"] == "goto class_1_sent"
    assert decided(rules("p_received", text), "ip", "s")["10.2.0.0-126.255.255.255"] == "goto class_2_received"
    assert rules("class_2_sent", text) == ["meta mark set 18 goto count_sent"]


def test_without_classes_the_link_counts():
    text = policy_rules("p", (), (), ())
    assert rules("p_sent", text) + rules("p_classes", text) == ["goto p_classes", "goto count_sent"]
    assert rules("p_received", text) == ["meta mark set 0", "goto count_received"]


def test_the_first_class_counts_both_ways():
    text = policy_rules("p", (), (), [destinations("10.0.0.0/8 port 80"), destinations("0.0.0.0/0 udp")])
    assert rules("p_classes", text)[-3:] == [
        "ip daddr { 10.0.0.0/8 } meta l4proto { tcp, udp } th dport 80 goto class_1_sent",
        "meta nfproto ipv4 meta l4proto udp goto class_2_sent",
        "goto count_sent",
    ]
    assert (
        "ip saddr { 10.0.0.0/8 } meta l4proto { tcp, udp } th sport 80 goto class_1_received"
        in rules("p_received", text)
    )
    assert "meta nfproto ipv6 goto count_sent" in rules("p_classes", text)


def test_the_same_reach_has_the_same_chain_in_every_broker():
    reach = Reach.of(Decision(denied=destinations("10.0.0.0/8"), classes={"campus": destinations("a.example udp")}))
    assert Reach.from_message(reach.message()) == reach
    assert Reach.from_message(reach.message()).chain == reach.chain
    assert reach.chain != Reach.of(Decision()).chain
    assert reach.named
    assert not Reach.of(Decision()).named


def test_a_kernel_without_logs_gets_a_table_without_them():
    assert "log group" in table_rules(logging=True, known_flows=True)
    assert "log" not in table_rules(logging=False, known_flows=True)


def test_what_is_shown_of_one_job_does_not_hide_what_is_of_another():
    shown = [line for line in table_rules(logging=True, known_flows=True).splitlines() if "log group" in line]
    assert len(shown) == 3
    for line in shown:
        each, _, all_jobs = line.partition("}")
        assert "_budget { oif limit rate" in each
        assert "limit rate" in all_jobs


def test_a_kernel_that_does_not_count_as_it_looks_up_has_each_packet_meet_the_policy():
    fast, slow = (table_rules(logging=False, known_flows=known) for known in (True, False))
    assert fast.count("_flows_4 accept") == fast.count("_flows_6 accept") == 2
    assert "counter;" in fast
    assert "_flows_4 accept" not in slow
    assert "counter;" not in slow  # nor does its nft(8) know the word there
    assert slow.count("update @sent_flows_4") == fast.count("update @sent_flows_4") + 1


def test_a_kernel_without_limits_gets_a_table_without_them():
    for known in (True, False):
        assert "limit" in table_rules(logging=False, known_flows=known)
        assert "limit" not in table_rules(logging=False, known_flows=known, bounded=False)


def test_a_flow_and_its_class_are_kept_by_one_rule():
    """A set that has room for only one of the two must not have it: the flow would be counted to no class."""
    for line in table_rules(logging=True, known_flows=True).splitlines():
        if "update @flow_classes_" in line:
            assert line.index("update @flow_classes_") < line.index("_flows_", line.index("mark }"))


def test_what_a_kernel_says_of_a_set_tells_whether_it_counts():
    head = "table inet htcondor_vpn_jobs {\n\tset sent_flows_4 {\n\t\tsize 65536\n\t\tflags dynamic\n"
    assert counts_look_ups(head + "\t\tcounter\n\t}\n}\n")
    assert not counts_look_ups(head + "\t\telements = { 65536 . 192.0.2.1 . tcp . 80 counter packets 1 bytes 40 }\n")
