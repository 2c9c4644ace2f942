"""Where the kernel lets pilots go, for a gateway that is root: the same as a gateway of ours does."""

from ipaddress import ip_address, ip_network

from htcondor_vpn.denied_destinations import denied_destinations
from htcondor_vpn.packet_gateway.kernel_nat import own_name_servers, rules


def judge(allow=(), deny="", servers=()):
    text = rules("htvj-oc", [ip_network(each) for each in allow], denied_destinations(deny), servers)
    chain = text.partition("chain judge {")[2].partition("}\n    chain")[0]
    return [line.strip() for line in chain.splitlines() if line.strip(" }")]


def test_the_order_of_the_rules():
    denied = "10.0.0.0/8, 10.20.5.0/24, 203.0.113.0/24 port 25"
    lines = judge(["10.20.0.0/16", "10.0.0.0/8"], denied, [ip_address("10.0.0.53")])
    order = [
        "ip daddr 10.0.0.53 meta l4proto { tcp, udp } th dport 53 accept",
        "ip daddr 127.0.0.0/8 goto refuse",
        "ip daddr 203.0.113.0/24 meta l4proto { tcp, udp } th dport 25-25 goto refuse",
        "ip daddr 10.20.5.0/24 goto refuse",
        "ip daddr 10.20.0.0/16 accept",
        "ip daddr 10.0.0.0/8 accept",
        "ip daddr 192.168.0.0/16 goto refuse",
        "ip6 daddr 64:ff9b::/96 goto refuse",
        "ip6 daddr != 2000::/3 goto refuse",
        "accept",
    ]
    places = [lines.index(line) for line in order]
    assert places == sorted(places)
    assert lines[-1] == "accept"


def test_name_servers_that_pilots_cannot_reach_are_not_told(tmp_path):
    (tmp_path / "resolv.conf").write_text(
        "# nameserver 192.0.2.9\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n"
        "nameserver 2001:db8::53\nsearch example.org\n"
    )
    assert own_name_servers(tmp_path / "resolv.conf") == [ip_address("192.0.2.53"), ip_address("2001:db8::53")]
