from ipaddress import ip_network

import pytest

from htcondor_vpn.denied_destinations import denied_destinations
from htcondor_vpn.gateway.serving import families
from htcondor_vpn.gateway.serving.destinations import PublicPolicy
from htcondor_vpn.gateway.serving.families import Families


def v4(network, flags):
    return ["one", network, "00000000", flags, "0", "0", "0", "00FFFFFF", "0", "0", "0"]


# As the kernel writes them: 203.0.113.0/24, 10.0.0.0/8, a rejected 198.51.100.0/24.
V4_PUBLIC, V4_PRIVATE, V4_REJECTED = v4("007100CB", "0001"), v4("0000000A", "0001"), v4("006433C6", "0201")
_ZERO = "00000000000000000000000000000000"


def v6(address, flags, device):
    return [address, "40", _ZERO, "00", _ZERO, "00000100", "00000001", "00000000", flags, device]


V6_PUBLIC = v6("20010db8000100000000000000000000", "00000001", "one")
V6_LINK = v6("fe800000000000000000000000000000", "00000001", "one")
V6_OWN = v6("20010db8000100000000000000000001", "80200001", "lo")
V6_NONE = v6(_ZERO, "00200200", "lo")


@pytest.fixture
def routed(monkeypatch):
    """Which families are routed, given the kernel's tables and no default route."""

    def ask(ipv4, ipv6, allow=()):
        tables = {"/proc/self/net/route": ipv4, "/proc/self/net/ipv6_route": ipv6}
        monkeypatch.setattr(families, "_table", lambda path, skip: tables[path])
        monkeypatch.setattr(Families, "_has_default", staticmethod(lambda name: False))
        return Families(PublicPolicy(tuple(map(ip_network, allow)))).routed()

    return ask


def test_a_network_that_pilots_may_reach_counts(routed):
    assert routed([V4_PUBLIC], [V6_LINK, V6_OWN, V6_NONE]) == ["ipv4"]
    assert routed([], [V6_LINK, V6_PUBLIC]) == ["ipv6"]
    assert routed([V4_PUBLIC], [V6_PUBLIC]) == ["ipv4", "ipv6"]


def test_what_they_may_not_reach_does_not(routed):
    assert routed([V4_PRIVATE, V4_REJECTED], [V6_LINK, V6_OWN, V6_NONE]) == []
    assert routed([V4_PRIVATE], [], ["10.0.0.0/8"]) == ["ipv4"]


def test_a_default_route_does(monkeypatch):
    monkeypatch.setattr(families, "_table", lambda path, skip: [])
    monkeypatch.setattr(Families, "_has_default", staticmethod(lambda name: name == "ipv6"))
    assert Families(PublicPolicy()).routed() == ["ipv6"]


@pytest.mark.parametrize(
    ("deny", "allow", "left"),
    [
        ("::/0", [], ["ipv4"]),
        ("0.0.0.0/0, ::/0", ["203.0.113.0/24"], ["ipv4"]),
        ("::/0 port 25, 2001:db8::/32", [], ["ipv4", "ipv6"]),
    ],
)
def test_a_version_that_is_denied_is_not_offered(monkeypatch, deny, allow, left):
    monkeypatch.setattr(Families, "_has_default", staticmethod(lambda name: True))
    policy = PublicPolicy(tuple(map(ip_network, allow)), denied_destinations(deny))
    assert Families(policy).routed() == left


def test_the_real_tables_can_be_read():
    assert set(Families(PublicPolicy()).routed()) <= {"ipv4", "ipv6"}
    list(families._ipv4_routes())
    list(families._ipv6_routes())


def test_a_look_is_kept_for_a_while(monkeypatch):
    looks = []
    monkeypatch.setattr(Families, "_has_default", staticmethod(lambda name: looks.append(name) or True))
    asked = Families(PublicPolicy())
    for _ in range(10):
        assert asked.routed() == ["ipv4", "ipv6"]
    assert looks == ["ipv4", "ipv6"]


def test_what_was_routed_still_is_while_there_are_no_descriptors(monkeypatch, without_descriptors):
    """A gateway that is busy for a moment is not one without a network, which pilots would leave."""
    monkeypatch.setattr(families, "_FRESH_SECONDS", 0.0)
    asked = Families(PublicPolicy())
    before = asked.routed()
    with without_descriptors():
        assert asked.routed() == before
    monkeypatch.setattr(Families, "_has_default", staticmethod(lambda name: True))
    assert (both := asked.routed()) == ["ipv4", "ipv6"]
    monkeypatch.undo()
    monkeypatch.setattr(families, "_FRESH_SECONDS", 0.0)
    with without_descriptors():
        assert asked.routed() == both
