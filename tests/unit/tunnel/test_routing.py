"""Which outlet is asked, and whose names."""

import asyncio
from ipaddress import ip_address

import pytest

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.route_rules import route_rules
from htcondor_vpn.tunnel import routes
from htcondor_vpn.tunnel.carrier import FlowRefused
from htcondor_vpn.tunnel.carriers import private_names
from htcondor_vpn.tunnel.carriers.private_names import PrivateNames
from htcondor_vpn.tunnel.catching.dns import question_name
from htcondor_vpn.tunnel.ladder import Ladder
from htcondor_vpn.tunnel.routes import NodeNetwork, Rejection, Route, Routes

parse = route_rules(("stream",))


class Outlet:
    def __init__(self, name):
        self.name = name

    async def open_flow(self, address, port):
        return f"{self.name} {address}", b""

    async def open_datagrams(self, address, port):
        return f"{self.name} {address}"


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def table(text):
    return Routes([Route(rule, Outlet(rule.way) if rule.leads else None) for rule in parse(text)], Outlet("tunnel"))


def test_each_destination_has_its_outlet():
    known = table("10.8.0.0/16 port 7 direct, 10.9.0.0/16 gateway a.example:1, 10.9.1.0/24 tunnel")
    for address, port, outlet in (
        ("10.8.0.1", 7, "direct"), ("10.8.0.1", 8, "tunnel"), ("10.9.0.1", 1, "gateway"), ("10.9.1.1", 1, "tunnel"),
        ("2001:db8::1", 1, "tunnel"),
    ):  # fmt: skip
        assert run(known.open_flow(ip_address(address), port)) == (f"{outlet} {address}", b"")
        assert run(known.open_datagrams(ip_address(address), port)) == f"{outlet} {address}"
    assert run(known.open_flow(ip_address("::ffff:10.8.0.1"), 7))[0] == "direct 10.8.0.1"
    asked = {told.to: told.flows for told in known.told()}
    assert asked == {"10.8.0.0/16 port 7": 3, "10.9.0.0/16": 2, "10.9.1.0/24": 2}


def test_a_route_whose_ladder_is_down_says_so():
    (rule,) = parse("10.9.0.0/16 gateway a.example:1")
    ladder = Ladder([])
    known = Routes([Route(rule, ladder, ladder)], Outlet("tunnel"))
    with pytest.raises(GatewayUnreachable):  # and not by the tunnel instead
        run(known.open_flow(ip_address("10.9.0.1"), 1))
    (told,) = known.told()
    assert (told.up, told.reason) == (False, "no gateway has answered yet")


def test_whether_datagrams_have_to_be_caught():
    assert table("10.8.0.0/16 direct").udp
    assert not table("10.8.0.0/16 reject, 10.9.0.0/16 tunnel").udp


def test_what_is_rejected():
    for opening in (Rejection().open_flow, Rejection().open_datagrams):
        with pytest.raises(FlowRefused, match="destination_ip_prohibited"):
            run(opening(ip_address("192.0.2.1"), 1))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "64:ff9b::7f00:1", "10.1.2.3"])
def test_the_node_itself_is_no_destination(monkeypatch, address):
    monkeypatch.setattr(routes, "is_own", lambda address: str(address) == "10.1.2.3")
    for opening in (NodeNetwork().open_flow, NodeNetwork().open_datagrams):
        with pytest.raises(FlowRefused) as refusal:
            run(opening(ip_address(address), 1))
        assert refusal.value.status == 403
        assert "destination_ip_prohibited" in refusal.value.reason


def query(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\0\0\x01\0\x01"


def test_the_name_in_a_question():
    assert question_name(query("Storage.Site.example")) == (b"storage", b"site", b"example")
    assert question_name(query("")) == ()
    assert question_name(query("a.b")[:14]) == (b"a",)
    assert question_name(b"") == ()


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("site.example", b"private"),
        ("a.b.SITE.example", b"private"),
        ("8.10.in-addr.arpa", b"private"),
        ("website.example", None),
        ("example", None),
        ("", None),
    ],
)
def test_only_names_of_the_domains_are_asked_of_the_site(monkeypatch, name, whose):
    class Servers:
        def __init__(self, *_):
            pass

        async def ask(self, query):
            return b"private"

    monkeypatch.setattr(private_names, "NameServers", Servers)
    names = PrivateNames(["site.example", "10.in-addr.arpa"], [("192.0.2.53", 53)])
    assert run(names.ask(query(name))) == whose
