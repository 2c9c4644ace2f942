"""Network links, their addresses and routes: the requests that make them, to be sent in one batch by `Netlink.do`.

Every link gets an index chosen by the caller, so that a batch can make a link and use it without asking in between.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, Union

from htcondor_vpn.linux.counters import Counters, parse_counters
from htcondor_vpn.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Netlink,
    Request,
    attribute,
    attribute_text,
    attribute_u32,
    attributes,
)

Address = Union[IPv4Address, IPv6Address]
Network = Union[IPv4Network, IPv6Network]

LOOPBACK_INDEX = 1

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR = 20
RTM_NEWROUTE = 24

_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_TXQLEN, _IFLA_LINKINFO = 1, 3, 4, 5, 13, 18
_IFLA_IFALIAS, _IFLA_GROUP = 20, 27
_IFLA_STATS64, _IFLA_NET_NS_FD, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 23, 28, 31, 32
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_GSO_MAX_SIZE, _IFLA_GRO_MAX_SIZE, _IFLA_GSO_IPV4_MAX_SIZE, _IFLA_GRO_IPV4_MAX_SIZE = 41, 58, 63, 64

#: What every kernel sends at once at most, before it is cut into frames (GSO), and what one with "BIG TCP" does
#: (include/linux/netdevice.h, GSO_LEGACY_MAX_SIZE and GSO_MAX_SIZE).
LEGACY_SEGMENT_BYTES, BIG_SEGMENT_BYTES = 65_536, 8 * 0xFFFF
_VETH_INFO_PEER = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_RT_TABLE_MAIN, _RTPROT_STATIC = 254, 4
_RT_SCOPE_UNIVERSE, _RT_SCOPE_HOST = 0, 254
_RTN_UNICAST, _RTN_LOCAL, _RTN_UNREACHABLE = 1, 2, 7


class Link(NamedTuple):
    """A link as the kernel lists it; `peer` is the index of a veth's other end, in that end's own namespace."""

    number: int
    name: str
    peer: int
    counters: Counters
    note: str


class End(NamedTuple):
    """One end of a veth. `address` is its hardware address, `segment_bytes` the most that it sends at once."""

    name: str
    number: int
    address: bytes
    segment_bytes: int


def _link_header(index: int, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _one_queue() -> bytes:
    # By default a link gets queues for every CPU of the machine, which takes long on a big one.
    return attribute_u32(_IFLA_NUM_TX_QUEUES, 1) + attribute_u32(_IFLA_NUM_RX_QUEUES, 1)


def make_veth(here: End, there: End, namespace: int, *, mtu: int) -> Request:
    """Makes a pair of links, one end here and the other in `namespace` (a descriptor).

    Raises ValueError for equal indices: although in two namespaces, the kernel (linkwatch) then takes up to a second
    to notice a carrier.
    """
    if here.number == there.number:
        raise ValueError("the two ends of a link need different indices")
    peer = _veth_end(there, mtu) + attribute_u32(_IFLA_NET_NS_FD, namespace)
    info = attribute_text(_IFLA_INFO_KIND, "veth") + attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer))
    body = _veth_end(here, mtu) + attribute(_IFLA_LINKINFO, info)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make the link {here.name}")


def _veth_end(end: End, mtu: int) -> bytes:
    body = _link_header(end.number) + attribute_text(_IFLA_IFNAME, end.name) + attribute_u32(_IFLA_MTU, mtu)
    body += attribute(_IFLA_ADDRESS, end.address) + attribute_u32(_IFLA_GSO_MAX_SIZE, end.segment_bytes)
    if end.segment_bytes > LEGACY_SEGMENT_BYTES:
        body += attribute_u32(_IFLA_GSO_IPV4_MAX_SIZE, end.segment_bytes)
    return body + _one_queue()


def make_ifb(name: str, *, index: int, mtu: int) -> Request:
    """Makes an intermediate functional block: what is sent into it comes back where it was, shaped."""
    info = attribute_text(_IFLA_INFO_KIND, "ifb")
    body = _link_header(index) + attribute_text(_IFLA_IFNAME, name) + attribute_u32(_IFLA_MTU, mtu) + _one_queue()
    return Request(
        RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + attribute(_IFLA_LINKINFO, info), f"make the link {name}"
    )


def make_wireguard(name: str, *, index: int) -> Request:
    """Makes a link of the kernel's own WireGuard, without keys or peers; EOPNOTSUPP where the kernel has none."""
    info = attribute_text(_IFLA_INFO_KIND, "wireguard")
    body = _link_header(index) + attribute_text(_IFLA_IFNAME, name) + attribute(_IFLA_LINKINFO, info)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make the link {name}")


def set_up(index: int) -> Request:
    """Sets a link up."""
    return Request(RTM_NEWLINK, 0, _link_header(index, _IFF_UP, _IFF_UP), f"set link {index} up")


def set_up_as(index: int, *, mtu: int, queue_packets: int) -> Request:
    """Sets a link up with this MTU (bytes) and room for so many packets that wait to be taken from it."""
    body = _link_header(index, _IFF_UP, _IFF_UP) + attribute_u32(_IFLA_MTU, mtu)
    return Request(RTM_NEWLINK, 0, body + attribute_u32(_IFLA_TXQLEN, queue_packets), f"set link {index} up")


def set_mtu(index: int, mtu: int) -> Request:
    """Gives a link another MTU, bytes."""
    return Request(RTM_NEWLINK, 0, _link_header(index) + attribute_u32(_IFLA_MTU, mtu), f"set the MTU of link {index}")


def set_segment_size(index: int, size_bytes: int) -> Request:
    """Lets TCP send through a link in segments of up to this size that nobody cuts: beyond 64 KB "BIG TCP", which
    needs Linux 5.19 for IPv6 and 6.3 for IPv4 (ip-link(8), gso_max_size).
    """
    kinds = (_IFLA_GSO_MAX_SIZE, _IFLA_GRO_MAX_SIZE, _IFLA_GSO_IPV4_MAX_SIZE, _IFLA_GRO_IPV4_MAX_SIZE)
    body = _link_header(index) + b"".join(attribute_u32(kind, size_bytes) for kind in kinds)
    return Request(RTM_NEWLINK, 0, body, f"set the segment size of link {index}")


def largest_segment_bytes(netlink: Netlink) -> int:
    """The most that a veth of this kernel can send at once by either version of IP: "BIG TCP" is in the loopback's
    attributes where there is any. A link that is made with more is not refused, but breaks.
    """
    found = dict(attributes(netlink.get(RTM_GETLINK, _link_header(LOOPBACK_INDEX), "read the loopback")[16:]))
    return BIG_SEGMENT_BYTES if _IFLA_GSO_IPV4_MAX_SIZE in found else LEGACY_SEGMENT_BYTES


def set_note(index: int, note: str) -> Request:
    """Attaches a note (ifalias, 255 bytes at most) to a link, which the kernel keeps with it."""
    body = _link_header(index) + attribute(_IFLA_IFALIAS, note.encode())
    return Request(RTM_NEWLINK, 0, body, f"attach a note to link {index}")


def set_group(index: int, group: int) -> Request:
    """Puts a link into a group, for `delete_group`."""
    body = _link_header(index) + attribute_u32(_IFLA_GROUP, group)
    return Request(RTM_NEWLINK, 0, body, f"put link {index} into group {group}")


def delete_group(group: int) -> Request:
    """Deletes all links of a group at once.

    The kernel waits for a grace period of its own each time it deletes links: 20 ms for one, 60 ms for 80 together.
    """
    body = _link_header(0) + attribute_u32(_IFLA_GROUP, group)
    return Request(RTM_DELLINK, 0, body, f"delete the links of group {group}")


def add_address(index: int, address: Address, prefix_length: int) -> Request:
    """Gives a link an address; IPv6 without duplicate address detection, which would make it wait a second."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBi", family, prefix_length, _IFA_F_PERMANENT, _RT_SCOPE_UNIVERSE, index)
    body += attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    if address.version == 6:
        body += attribute_u32(_IFA_FLAGS, _IFA_F_NODAD | _IFA_F_PERMANENT)
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"add address {address} to link {index}")


def _route(destination: Network, kind: int, rest: bytes, what: str, table: int = _RT_TABLE_MAIN) -> Request:
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    header = struct.pack(
        "=BBBBBBBBI",
        family, destination.prefixlen, 0, 0, table, _RTPROT_STATIC,
        _RT_SCOPE_HOST if kind == _RTN_LOCAL else _RT_SCOPE_UNIVERSE, kind, 0,
    )  # fmt: skip
    target = attribute(_RTA_DST, destination.network_address.packed) if destination.prefixlen else b""
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, header + target + rest, what)


def add_route(destination: Network, gateway: Address, index: int, table: int = _RT_TABLE_MAIN) -> Request:
    """Routes `destination` through `gateway`, which is a neighbour on link `index`; in the `table` of that number."""
    rest = attribute(_RTA_GATEWAY, gateway.packed) + attribute_u32(_RTA_OIF, index)
    return _route(destination, _RTN_UNICAST, rest, f"add the route to {destination} by {gateway}", table)


def add_link_route(destination: Network, index: int) -> Request:
    """Routes `destination` into link `index`, at whose other end everyone is (a tun)."""
    rest = attribute_u32(_RTA_OIF, index)
    return _route(destination, _RTN_UNICAST, rest, f"add the route to {destination} by link {index}")


def add_local_route(destination: Network, source: Address, index: int) -> Request:
    """Has this host take `destination` for its own, by link `index`; what it sends there comes from `source`."""
    rest = attribute_u32(_RTA_OIF, index) + attribute(_RTA_PREFSRC, source.packed)
    return _route(destination, _RTN_LOCAL, rest, f"take {destination} for our own")


def refuse_route(destination: Network) -> Request:
    """Makes `destination` unreachable at once instead of by a timeout."""
    return _route(destination, _RTN_UNREACHABLE, b"", f"make {destination} unreachable")


def list_links(netlink: Netlink) -> list[Link]:
    """Lists all links of the namespace of `netlink`."""
    return [_parse(body) for body in netlink.dump(RTM_GETLINK, _link_header(0))]


def get_link(netlink: Netlink, index: int) -> Link:
    """Returns one link; raises `NetlinkError` (ENODEV) if there is none."""
    return _parse(netlink.get(RTM_GETLINK, _link_header(index), f"read link {index}"))


def _parse(body: bytes) -> Link:
    found = dict(attributes(body[16:]))
    return Link(
        number=struct.unpack_from("=i", body, 4)[0],
        name=found[_IFLA_IFNAME].rstrip(b"\0").decode(),
        peer=struct.unpack("=I", found[_IFLA_LINK])[0] if _IFLA_LINK in found else 0,
        counters=parse_counters(found[_IFLA_STATS64]),
        note=found.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
    )
