from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture, Packet
from htcondor_vpn.testbed.links import Link
from htcondor_vpn.testbed.settling import ip
from htcondor_vpn.testbed.site import NODE, Site

GATEWAY = [(plan.DMZ_INSIDE.v4, 8443), (plan.DMZ_INSIDE.v6, 8443)]
BOTH_WAYS = {
    f"IPv4 {plan.NODE.v4} > {plan.DMZ_INSIDE.v4} protocol 6",
    f"IPv4 {plan.DMZ_INSIDE.v4} > {plan.NODE.v4} protocol 6",
}
LEAK = b"what should not be seen"


@pytest.fixture
def default_route(site: Site) -> Iterator[None]:
    """What `Site(default_route=True)` gives the node."""
    for address in plan.DMZ_INSIDE:
        ip(NODE, f"route add default via {address}")
    yield
    for address in plan.DMZ_INSIDE:
        ip(NODE, f"route delete default via {address}")


def connect_refused(site: Site, address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with site.node.socket(family, socket.SOCK_STREAM) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((address, port))


def directions(packets: list[Packet]) -> set[str]:
    """Who sent what to whom: not how often, for what is late is sent again."""
    return {str(packet) for packet in packets}


def send_datagrams(site: Site, address: str, count: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with site.node.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(count):
            sock.sendto(LEAK, (address, 53))


def test_what_goes_to_the_gateway_is_not_foreign(site: Site, link: Link) -> None:
    ip(NODE, "neigh flush all")
    with Capture(site, GATEWAY) as capture:
        for address, port in GATEWAY:
            connect_refused(site, str(address), port)
    assert capture.foreign == []
    assert capture.total >= 4  # SYN and RST, twice
    assert capture.link_control


def test_another_port_of_the_gateway_is_foreign(site: Site, link: Link) -> None:
    with Capture(site, GATEWAY) as capture:
        connect_refused(site, str(plan.DMZ_INSIDE.v4), 8444)
    assert directions(capture.foreign) == BOTH_WAYS
    with Capture(site, [(plan.DMZ_INSIDE.v4, None)]) as capture:
        connect_refused(site, str(plan.DMZ_INSIDE.v4), 8444)
    assert capture.foreign == []


@pytest.mark.parametrize("name", ["dns", "http"])
def test_leaks_are_counted(site: Site, link: Link, default_route: None, tmp_path: Path, name: str) -> None:
    with Capture(site, GATEWAY, tmp_path / "leak.pcap") as capture:
        send_datagrams(site, str(plan.WORLD[name].v4), 150)
        send_datagrams(site, str(plan.WORLD[name].v6), 150)
    leaks = [packet for packet in capture.foreign if LEAK in packet.frame]
    assert len(leaks) == 300
    assert str(leaks[0]) == f"IPv4 {plan.NODE.v4} > {plan.WORLD[name].v4} protocol 17"
    assert str(leaks[-1]) == f"IPv6 {plan.NODE.v6} > {plan.WORLD[name].v6} next 17"
    assert LEAK in capture.pcap.read_bytes()


def test_a_link_that_goes_down_and_up_is_captured_on(
    site: Site, link: Link, default_route: None, tmp_path: Path
) -> None:
    with Capture(site, GATEWAY, tmp_path / "leak.pcap") as capture:
        link.down()
        link.up()
        send_datagrams(site, str(plan.WORLD["dns"].v4), 3)
    assert len([packet for packet in capture.foreign if LEAK in packet.frame]) == 3


def test_an_idle_node_is_silent(site: Site, link: Link) -> None:
    with Capture(site, GATEWAY) as capture:
        pass
    assert capture.foreign == []


def test_a_delayed_link_is_captured_too(site: Site, link: Link) -> None:
    link.shape(delay_ms=1)
    with Capture(site, []) as capture:
        connect_refused(site, str(plan.DMZ_INSIDE.v4), 8443)
    assert directions(capture.foreign) == BOTH_WAYS


def test_a_site_with_a_default_route_shows_leaks(site: Site) -> None:
    """The same in a site of its own, made with the option."""
    import sys

    script = """
import socket, sys
from htcondor_vpn.testbed.sandbox import *
from htcondor_vpn.testbed.capture import Capture, Packet
from htcondor_vpn.testbed.site import Site
if not inside():
    sys.exit(exec_inside([sys.executable, "-c", sys.argv[1], sys.argv[1]]))
with Site(default_route=True) as site:
    with Capture(site, [("10.1.0.1", 8443), ("fd10:1::1", 8443)]) as capture:
        for address in ("203.0.113.20", "2001:db8:1::20"):
            with site.node.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.settimeout(1)
                try:
                    sock.connect((address, 80))
                except TimeoutError:
                    pass
print(sorted({str(packet) for packet in capture.foreign}))
"""
    done = site.node.run([sys.executable, "-c", script, script])
    assert done.stderr == ""
    assert done.stdout == "['IPv4 10.1.0.2 > 203.0.113.20 protocol 6', 'IPv6 fd10:1::2 > 2001:db8:1::20 next 6']\n"
