"""The text of HTCONDOR_VPN_ROUTES."""

from ipaddress import ip_address, ip_network

import pytest

from htcondor_vpn.route_rules import led_beside, route_rules

parse = route_rules(("stream", "ssh"))


def asked(text, address, port=443):
    """By which way a connection goes, None if no rule fits."""
    return next((rule.by for rule in parse(text) if rule.fits(ip_address(address), port)), None)


def test_the_ways():
    text = """10.8.0.0/16 direct, 2001:db8:8::/48 direct,192.0.2.0/24 reject,
        198.51.100.0/24 gateway gw2.example:443, 203.0.113.7 engine SSH, 2001:db8:9::1 gateway [2001:db8::1]:8443"""
    assert asked(text, "10.8.1.2") == "direct"
    assert asked(text, "2001:db8:8::1") == "direct"
    assert asked(text, "192.0.2.255") == "reject"
    assert asked(text, "198.51.100.1") == "gateway gw2.example:443"
    assert asked(text, "203.0.113.7") == "engine ssh"
    assert asked(text, "2001:db8:9::1") == "gateway [2001:db8::1]:8443"
    assert asked(text, "203.0.113.8") is None
    assert parse("") == ()


def test_the_longest_prefix_holds_and_then_the_fewest_ports():
    text = "10.0.0.0/8 reject, 10.8.0.0/16 tunnel, 10.8.0.0/16 port 1000-2000 direct, 10.8.0.0/16 port 1094 reject"
    assert asked(text, "10.1.0.1") == "reject"
    assert asked(text, "10.8.0.1") == "tunnel"
    assert asked(text, "10.8.0.1", 1000) == asked(text, "10.8.0.1", 2000) == "direct"
    assert asked(text, "10.8.0.1", 2001) == "tunnel"
    assert asked(text, "10.8.0.1", 1094) == "reject"


def test_what_people_are_shown():
    (rule,) = parse("10.8.0.0/16 port 1094-1095 direct")
    assert (rule.destination, rule.by) == ("10.8.0.0/16 port 1094-1095", "direct")
    (rule,) = parse("10.8.0.0/16 port 1094 gateway a.example:1")
    assert (rule.destination, rule.by) == ("10.8.0.0/16 port 1094", "gateway a.example:1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.8.0.0/16", "does not end with one of tunnel, direct, reject"),
        ("10.8.0.0/16 dirct", "does not end with"),
        ("10.8.0.0/16 direct please", "does not end with"),
        ("10.8.0.1/16 direct", "'10.8.0.1/16', which has bits set behind its prefix"),
        ("storage.example direct", "'storage.example', which is no network"),
        ("10.8.0.0/16 port direct", "has no port N or N-M"),
        ("10.8.0.0/16 port 9-5 direct", "has no port N or N-M"),
        ("10.8.0.0/16 port 70000 direct", "has no port N or N-M"),
        ("10.8.0.0/16 gateway", "does not end with"),
        ("10.8.0.0/16 gateway gw", "'gw', which is not HOST:PORT"),
        ("10.8.0.0/16 engine teleport", "'teleport', which is none of stream, ssh"),
        ("0.0.0.0/0 direct", "leads everything past the tunnel"),
        ("::/0 direct", "leads everything past the tunnel"),
        ("127.0.0.0/8 direct", "is loopback, which is never direct"),
        ("fe80::/64 direct", "is link-local, which is never direct"),
        ("198.18.0.0/24 direct", "the pilot's own inside"),
        ("10.8.0.0/16 direct, 10.8.0.0/16 reject", "two entries for 10.8.0.0/16"),
        (", ".join(f"10.8.{n // 256}.{n % 256} direct" for n in range(101)), "more than 100 entries"),
    ],
)
def test_what_is_wrong(text, why):
    with pytest.raises(ValueError, match=why.replace("(", r"\(")):
        parse(text)


def test_everything_may_be_rejected_but_for_exceptions():
    text = "0.0.0.0/0 reject, 203.0.113.0/24 tunnel"
    assert (asked(text, "192.0.2.1"), asked(text, "203.0.113.1")) == ("reject", "tunnel")


def test_networks_of_a_family_that_the_tunnel_lacks():
    rules = parse("10.8.0.0/16 direct, 2001:db8::/32 direct, 2001:db8::/32 port 1 gateway x.example:1, ::/0 reject")
    assert led_beside(rules, ["ipv4"]) == [ip_network("2001:db8::/32")]
    assert led_beside(rules, ["ipv4", "ipv6"]) == []
