import errno
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.denied_destinations import denied_destinations
from htcondor_vpn.gateway.serving.destinations import PublicPolicy, interleaved, parse_target
from htcondor_vpn.linux.netlink import NetlinkError
from htcondor_vpn.linux.routes import is_own

POLICY = PublicPolicy()

NEVER = [
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
    "::/128", "::1/128", "fe80::/10", "ff00::/8", "::/96", "4000::/3", "fec0::/10",
]  # fmt: skip
PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"]
PUBLIC = [
    "198.18.0.0/15", "203.0.113.0/24", "192.0.2.0/24", "198.51.100.0/24", "8.0.0.0/8", "172.32.0.0/11",
    "100.128.0.0/9", "2001:db8::/32", "2600::/12", "2a00::/12",
]  # fmt: skip


def within(networks):
    def addresses(network):
        kind = IPv4Address if network.version == 4 else IPv6Address
        return st.integers(int(network[0]), int(network[-1])).map(kind)

    return st.one_of([addresses(ip_network(network)) for network in networks])


def wrapped(address):
    """The IPv6 addresses that lead to an IPv4 one."""
    four = int(address)
    return [
        IPv6Address(0xFFFF << 32 | four),
        IPv6Address(int(IPv6Address("64:ff9b::")) | four),
        IPv6Address(0x2002 << 112 | four << 80 | 1),
        IPv6Address(0x20010000 << 96 | int(IPv4Address("8.8.8.8")) << 64 | (four ^ 0xFFFFFFFF)),
        IPv6Address(0x20010000 << 96 | four << 64 | (int(IPv4Address("8.8.8.8")) ^ 0xFFFFFFFF)),
    ]


@given(within(NEVER))
def test_never(address):
    everything = PublicPolicy((ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert everything.refusal_of_range(address)
    assert POLICY.refusal(address, 80)


@given(within(PRIVATE))
def test_private_unless_allowed(address):
    assert POLICY.refusal_of_range(address) == "private"
    assert PublicPolicy((ip_network(address),)).refusal_of_range(address) is None
    assert PublicPolicy((ip_network("10.255.255.255/32"),)).refusal_of_range(IPv4Address("10.0.0.1")) == "private"


@given(within(PUBLIC))
def test_public_documentation_and_benchmark_ranges(address):
    assert POLICY.refusal_of_range(address) is None


@given(within([n for n in NEVER + PRIVATE if ":" not in n]))
def test_wrapping_does_not_help(address):
    for outer in wrapped(address):
        assert POLICY.refusal(outer, 80), outer
        assert PublicPolicy((ip_network("::/0"),)).refusal(outer, 80), outer


@given(within([n for n in PUBLIC if ":" not in n]))
def test_wrapped_public(address):
    for outer in wrapped(address):
        assert POLICY.refusal_of_range(outer) is None


@given(within([n for n in PRIVATE if ":" not in n]))
def test_an_allowed_private_address_may_be_wrapped(address):
    allowing = PublicPolicy((ip_network(address),))
    assert allowing.refusal_of_range(wrapped(address)[0]) is None


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_every_ipv4_address_is_judged_as_the_registries_say(address):
    """Where we differ from `ipaddress`, we do so on purpose."""
    refused = POLICY.refusal_of_range(address) is not None
    on_purpose = any(address in ip_network(n) for n in PUBLIC) or address in ip_network("192.0.0.0/24")
    if not on_purpose:
        assert refused == (not address.is_global or address.is_multicast)


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "::127.0.0.1", "fd00::1"])
def test_notable(address):
    assert POLICY.refusal(ip_address(address), 80)


def test_the_gateways_own_addresses(monkeypatch):
    own = IPv4Address("203.0.113.7")
    monkeypatch.setattr("htcondor_vpn.gateway.serving.destinations.is_own", lambda address: address == own)
    assert POLICY.refusal(own, 80) == "the gateway's own"
    assert POLICY.refusal(IPv6Address("64:ff9b::203.0.113.7"), 80) == "the gateway's own"
    assert POLICY.refusal(IPv4Address("203.0.113.8"), 80) is None
    assert PublicPolicy((ip_network("203.0.113.0/24"),)).refusal(own, 80) is None


ALLOWING = (ip_network("10.1.0.0/16"), ip_network("198.51.100.0/24"))


@pytest.mark.parametrize(
    ("deny", "address", "port", "rule"),
    [
        ("203.0.113.0/24", "203.0.113.9", 80, "denied by 203.0.113.0/24"),
        ("203.0.113.0/24", "203.0.114.9", 80, None),
        ("203.0.113.0/24", "::ffff:203.0.113.9", 80, "denied by 203.0.113.0/24"),
        ("203.0.113.0/24", "64:ff9b::203.0.113.9", 80, "denied by 203.0.113.0/24"),
        ("203.0.113.0/24", "2002:cb00:7109::1", 80, "denied by 203.0.113.0/24"),
        ("2001:db8::/32", "2001:db8::9", 80, "denied by 2001:db8::/32"),
        # A denied network may have holes, as narrow or narrower than it is.
        ("0.0.0.0/0", "198.51.100.7", 80, None),
        ("198.51.100.0/24", "198.51.100.7", 80, None),
        ("198.51.100.0/25", "198.51.100.7", 80, "denied by 198.51.100.0/25"),
        ("0.0.0.0/0", "203.0.113.9", 80, "denied by 0.0.0.0/0"),
        ("0.0.0.0/0", "127.0.0.1", 80, "denied by 0.0.0.0/0"),
        # A denied port has none.
        ("0.0.0.0/0 port 25", "198.51.100.7", 25, "denied by 0.0.0.0/0 port 25"),
        ("0.0.0.0/0 port 25", "10.1.2.3", 25, "denied by 0.0.0.0/0 port 25"),
        ("0.0.0.0/0 port 25", "203.0.113.9", 26, None),
        ("0.0.0.0/0 port 6881-6999", "203.0.113.9", 6900, "denied by 0.0.0.0/0 port 6881-6999"),
        ("0.0.0.0/0 port 6881-6999", "203.0.113.9", 7000, None),
        ("0.0.0.0/0 port 25", "203.0.113.9", 0, None),
        ("0.0.0.0/0 port 25", "10.2.0.1", 80, "private"),
    ],
)
def test_what_is_denied(deny, address, port, rule):
    assert PublicPolicy(ALLOWING, denied_destinations(deny)).refusal(ip_address(address), port) == rule


@given(within(NEVER))
def test_no_denial_opens_anything(address):
    everything = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    for deny in ("198.51.100.0/24", "0.0.0.0/0", "::/0 port 1-65535"):
        assert not PublicPolicy(everything, denied_destinations(deny)).judge(address, 80).allowed


@pytest.mark.parametrize(
    "text",
    ["x", "10.0.0.1/8", "10.0.0.0/8 port", "10.0.0.0/8 port 0", "10.0.0.0/8 port 9-1", "10.0.0.0/8 80", "port 25",
     "10.0.0.0/8 port 1 2", "10.0.0.0/8, 10.0.0.0/8", "10.0.0.0/8 port 65536"],
)  # fmt: skip
def test_denials_that_are_none(text):
    with pytest.raises(ValueError, match="entry"):
        denied_destinations(text)


def test_own_is_what_the_kernel_delivers_here():
    assert is_own(IPv4Address("127.0.0.1"))
    assert is_own(IPv4Address("127.1.2.3"))
    assert not is_own(IPv4Address("203.0.113.7"))
    assert not is_own(IPv6Address("2001:db8::7"))
    for result in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
        address = ip_address(result[4][0].partition("%")[0])
        assert is_own(address) or address.is_link_local


def test_a_kernel_that_does_not_look_is_no_permission(monkeypatch):
    def out_of_memory(*_):
        raise NetlinkError(errno.ENOBUFS, "no room for the answer")

    monkeypatch.setattr("htcondor_vpn.linux.netlink.Netlink.get", out_of_memory)
    with pytest.raises(OSError, match="no room"):
        POLICY.refusal(IPv4Address("203.0.113.7"), 80)


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        ("192.0.2.1:80", (IPv4Address("192.0.2.1"), 80)),
        ("[2001:db8::1]:443", (IPv6Address("2001:db8::1"), 443)),
        ("[::ffff:192.0.2.1]:443", (IPv4Address("192.0.2.1"), 443)),
        ("example.org:8080", ("example.org", 8080)),
        ("127.1:80", ("127.1", 80)),
    ],
)
def test_targets(target, parsed):
    assert parse_target(target) == parsed


@pytest.mark.parametrize(
    "target",
    ["", "example.org", ":80", "a:0", "a:65536", "a:-1", "::1:80", "[::1]", "[::1%eth0]:80", "[1.2.3.4]:80", "a b:80",
     "a:80\n", "user@a:80", "a:80/x", "[::1]:80:80", "[]:80", "a:٣", "x" * 254 + ":1"],
)  # fmt: skip
def test_targets_that_are_none(target):
    with pytest.raises(ValueError, match=r"."):
        parse_target(target)


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_value_error(text):
    try:
        _, port = parse_target(text)
    except ValueError:
        return
    assert 0 < port < 65536


def test_families_take_turns():
    four = [IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3)]
    six = [IPv6Address("2001:db8::1"), IPv6Address("::ffff:192.0.2.1")]
    assert interleaved([six[0], *four, six[1]]) == [six[0], *four]
    assert interleaved([four[0], four[1], six[0]]) == [four[0], six[0], four[1]]
    assert interleaved([]) == []
