"""What an AnyConnect server may say of the network that it gives us, and what is not believed."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.tunnel.carriers.openconnect_network import read_network


def said(**more: Any) -> dict[str, Any]:
    plain = {"address": "10.8.0.7", "address6": "", "netmask6": "", "dns": [], "mtu": 1400, "includes": []}
    return {**plain, "excludes": [], **more}


def test_everything_is_routed_where_nothing_particular_is() -> None:
    given_ = read_network(said(netmask6="fd08::7/64", dns=["203.0.113.53"]))
    assert given_.config.addresses == (ip_address("10.8.0.7"), ip_address("fd08::7"))
    routes = (ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network("203.0.113.53/32"))
    assert given_.config.routes == routes
    assert given_.name_servers == ("203.0.113.53",)
    assert given_.families == ("ipv4", "ipv6")


def test_a_split_tunnel_and_its_name_server() -> None:
    told = said(includes=["10.0.0.0/255.0.0.0", "10.1.2.3/8", "fd00::/8"], excludes=["10.9.0.0/16", "0.0.0.0/32"])
    given_ = read_network({**told, "dns": ["192.0.2.53", "2001:db8::53"]})
    assert given_.config.routes == (ip_network("10.0.0.0/8"), ip_network("192.0.2.53/32"))
    assert given_.config.refused == (ip_network("10.9.0.0/16"),)
    assert given_.name_servers == ("192.0.2.53",)
    assert given_.families == ("ipv4",)


def test_what_is_both_routed_and_refused_is_refused() -> None:
    config = read_network(said(includes=["10.0.0.0/8"], excludes=["10.0.0.0/8"])).config
    assert (config.routes, config.refused) == ((), (ip_network("10.0.0.0/8"),))


def test_ipv6_needs_a_link_that_can_carry_it() -> None:
    assert read_network(said(netmask6="fd08::7/64", mtu=1279)).families == ("ipv4",)


@pytest.mark.parametrize(
    "odd",
    [
        {"mtu": 0}, {"mtu": 575}, {"mtu": 16385}, {"address": ""}, {"address": "127.0.0.1"}, {"address": "0.0.0.0"},
        {"address": "224.0.0.1"}, {"address": "10.8.0.7/24"}, {"address": "$(reboot)"},
        {"address": "fd08::1", "netmask6": "fd08::2/64"},
        {"address": "", "netmask6": "fe80::1/64"}, {"address": "", "netmask6": "::1/64"},
        {"dns": ["127.0.0.53"]}, {"dns": ["`id`"]}, {"dns": ["dns.example.org"]},
        {"includes": ["10.0.0.0/8;id"]}, {"includes": [""]}, {"includes": ["10.0.0.0/33"]},
        {"excludes": ["$IFS"]}, {"includes": [f"10.0.{n // 256}.{n % 256}" for n in range(501)]},
    ],
)  # fmt: skip
def test_what_is_not_believed(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read_network(said(**odd))


@given(st.text(), st.text(), st.text())
def test_any_text_is_an_address_or_refused(one: str, two: str, three: str) -> None:
    try:
        config = read_network(said(dns=[one], includes=[two], excludes=[three])).config
    except ValueError:
        return
    assert all(route.version == 4 for route in config.routes)
