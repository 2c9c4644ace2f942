"""What a WireGuard configuration makes of the tun device."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from htcondor_vpn.tunnel.carriers.wireguard import fitting_mtu, tun_config
from htcondor_vpn.tunnel.carriers.wireguard_config import RemotePeer, WireguardConfig


def config(addresses, *allowed):
    peers = [
        RemotePeer(bytes([number]) * 32, tuple(map(ip_network, networks)), ("vpn.example.org", 51820))
        for number, networks in enumerate(allowed)
    ]
    return WireguardConfig(bytes(32), tuple(map(ip_interface, addresses)), tuple(peers), mtu=1380)


def test_all_that_a_peer_is_allowed_is_routed_to_it():
    made = tun_config(config(["10.9.0.2/24", "fd09::2"], ["0.0.0.0/0", "::/0"], ["10.0.0.0/8", "::/0"]))
    assert made.mtu == 1380
    assert made.addresses == (ip_address("10.9.0.2"), ip_address("fd09::2"))
    assert made.routes == (ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network("10.0.0.0/8"))
    assert made.refused == ()


@pytest.mark.parametrize(
    ("addresses", "allowed", "expected"),
    [
        (["10.9.0.2", "fd09::2"], ["0.0.0.0/0", "::/0"], ("ipv4", "ipv6")),
        (["10.9.0.2"], ["0.0.0.0/0", "::/0"], ("ipv4",)),
        (["10.9.0.2", "fd09::2"], ["::/0"], ("ipv6",)),
    ],
)
def test_a_family_needs_an_address_and_a_route(addresses, allowed, expected):
    assert config(addresses, allowed).families == expected


V4, V6 = ip_address("203.0.113.1"), ip_address("2001:db8::1")


@pytest.mark.parametrize(
    ("allowed", "paths", "expected"),
    [
        (["0.0.0.0/0"], [(V4, 1500)], 1380),  # as the file says
        (["0.0.0.0/0"], [(V4, 1400)], 1340),
        (["0.0.0.0/0"], [(V6, 1400)], 1320),
        (["0.0.0.0/0"], [(V4, 1400), (V6, 1350), (V4, None)], 1270),
        (["0.0.0.0/0"], [(V4, 100)], 576),
        (["0.0.0.0/0"], [(V4, None)], 1380),  # no route just now
        (["0.0.0.0/0", "::/0"], [(V4, 1300)], 1280),  # IPv6 needs that
    ],
)
def test_packets_fit_the_paths(allowed, paths, expected):
    assert fitting_mtu(config(["10.9.0.2", "fd09::2"], allowed), paths) == expected
