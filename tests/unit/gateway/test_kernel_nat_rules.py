"""Where the kernel lets pilots go, for a gateway that is root: the same as a gateway of ours does."""

import resource
from ipaddress import ip_address, ip_network

import pytest

from htcondor_vpn.addresses import OCSERV_V4, OCSERV_V6, PILOT_V4, PILOT_V6, WIREGUARD_V4, WIREGUARD_V6
from htcondor_vpn.denied_destinations import denied_destinations
from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway import kernel_nat
from htcondor_vpn.gateway.kernel_nat import Pilots, own_name_servers, rules


def judge(allow=(), deny="", servers=()):
    pilots = Pilots("ocserv", "htvj-oc", (OCSERV_V4, OCSERV_V6), servers)
    text = rules(pilots, [ip_network(each) for each in allow], denied_destinations(deny))
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


def test_of_the_host_itself_only_the_resolver_may_be_asked():
    own = (PILOT_V4, PILOT_V6)
    text = rules(Pilots("wireguard", "htvj-wg", (WIREGUARD_V4, WIREGUARD_V6), resolver=own), (), ())
    lines = [line.strip() for line in text.partition("chain own {")[2].splitlines()]
    asked = "meta l4proto { tcp, udp } th dport 53 accept"
    assert [line for line in lines if "accept" in line][1:] == [
        f'iifname "htvj-wg*" ip daddr 198.18.0.1 {asked}', f'iifname "htvj-wg*" ip6 daddr {PILOT_V6} {asked}',
    ]  # fmt: skip
    assert 'iifname "htvj-wg*" goto refuse' in lines
    assert 'ip saddr 198.18.128.0/17 oifname != "htvj-wg*" masquerade' in text
    assert text.startswith("table inet htcondor_vpn_gateway_wireguard {")


def test_name_servers_that_pilots_cannot_reach_are_not_told(tmp_path):
    (tmp_path / "resolv.conf").write_text(
        "# nameserver 192.0.2.9\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\n"
        "nameserver 2001:db8::53\nsearch example.org\n"
    )
    assert own_name_servers(tmp_path / "resolv.conf") == [ip_address("192.0.2.53"), ip_address("2001:db8::53")]


def test_a_full_disk_leaves_no_half_of_what_was_before(monkeypatch, tmp_path):
    setting = tmp_path / "ip_forward"
    setting.write_text("0")
    monkeypatch.setattr(kernel_nat, "_FORWARDING", [setting])
    monkeypatch.setattr(kernel_nat, "_BEFORE", tmp_path / "before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises((OSError, GatewayFolderError)):
            kernel_nat._forwarding_before()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kernel_nat._forwarding_before() == {setting: "0"}
    setting.write_text("1")
    assert kernel_nat._forwarding_before() == {setting: "0"}
