"""What an AnyConnect server says of the network it gives us: read with suspicion, and never shown to a shell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple, Union

from htcondor_vpn.tunnel.carriers.tun_namespace import TunConfig

_Address = Union[IPv4Address, IPv6Address]
_Network = Union[IPv4Network, IPv6Network]

_EVERYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
#: AnyConnect's word for "the local network", which we have none of.
_LOCAL_LAN = ip_network("0.0.0.0/32")
_MIN_MTU, _MIN_MTU_V6, _MAX_MTU = 576, 1280, 16384
_MAX_ROUTES = 500


class Given(NamedTuple):
    """What the server gave: the tun's configuration, its name servers, and the families ("ipv4", "ipv6") it routes."""

    config: TunConfig
    name_servers: tuple[str, ...]
    families: tuple[str, ...]


def read_network(said: Mapping[str, Any]) -> Given:
    """Reads the `network` of `openconnect_client`; raises ValueError with the rest of a sentence, for anything odd.

    As with vpnc-script, a family without routes of its own is routed whole, and name servers are routed in any case.
    """
    mtu = said["mtu"]
    if not _MIN_MTU <= mtu <= _MAX_MTU:
        raise ValueError(f"has an MTU of {mtu}")
    addresses = [_address(said["address"])] if said["address"] else []
    v6 = said["netmask6"].partition("/")[0] or said["address6"]
    if v6 and mtu >= _MIN_MTU_V6:
        addresses.append(_address(v6))
    if not addresses or len({address.version for address in addresses}) != len(addresses):
        raise ValueError("has no address for us")
    name_servers = [_address(server) for server in said["dns"]]
    includes, excludes = _networks(said["includes"]), _networks(said["excludes"])
    versions = [address.version for address in addresses]
    routes = [route for route in includes if route.version in versions]
    routes += [_EVERYWHERE[version] for version in versions if version not in {route.version for route in routes}]
    routes += [ip_network(server) for server in name_servers if server.version in versions]
    refused = [route for route in excludes if route.version in versions and route != _LOCAL_LAN]
    config = TunConfig(
        mtu=mtu,
        addresses=tuple(addresses),
        routes=tuple(route for route in dict.fromkeys(routes) if route not in refused),
        refused=tuple(dict.fromkeys(refused)),
    )
    reached = tuple(str(server) for server in name_servers if server.version in versions)
    return Given(config, reached, tuple(sorted(f"ipv{version}" for version in versions)))


def _address(text: str) -> _Address:
    address = ip_address(text)
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
        raise ValueError(f"has the address {address}")
    return address


def _networks(texts: Sequence[str]) -> list[_Network]:
    if len(texts) > _MAX_ROUTES:
        raise ValueError(f"has more than {_MAX_ROUTES} routes")
    return list(_parsed(texts))


def _parsed(texts: Iterable[str]) -> Iterable[_Network]:
    for text in texts:
        yield ip_network(text, strict=False)
