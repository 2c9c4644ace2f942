"""What is read from the packets that tell jobs something: names, refusals of datagrams, and any rubbish."""

import socket
import struct
from ipaddress import ip_address

import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.counting.answers import Named, Undelivered, told


def ipv4(protocol, body, source="198.18.0.1", destination="198.19.0.1"):
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + ends + body


def ipv6(protocol, body, destination):
    ends = socket.inet_pton(socket.AF_INET6, "fd00::1") + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + ends + body


def udp(payload, to_port=53):
    return struct.pack("!HHHH", 53, to_port, 8 + len(payload), 0) + payload


def answer(name, *records):
    message = dns.message.make_response(dns.message.make_query(name, "A"))
    message.answer = [dns.rrset.from_text(*record) for record in records]
    return message.to_wire()


def test_a_names_addresses_by_its_other_names():
    wire = answer(
        "Www.Example.org.",
        ("www.example.org.", 60, "IN", "CNAME", "cdn.example.net."),
        ("cdn.example.net.", 60, "IN", "A", "192.0.2.1", "192.0.2.2"),
        ("cdn.example.net.", 60, "IN", "AAAA", "2001:db8::1"),
    )
    found = told(ipv4(17, udp(wire)))
    assert found.name == "www.example.org"
    assert set(found.addresses) == set(map(ip_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1")))


def test_an_answer_without_addresses_tells_nothing():
    assert told(ipv4(17, udp(answer("example.org.")))) is None


@pytest.mark.parametrize(("code", "reason"), [(3, "the far side has no such port"), (13, "prohibited"), (1, "unreach")])
def test_a_datagram_that_goes_nowhere(code, reason):
    inside = ipv4(17, udp(b"x", 4433), "198.19.0.1", "192.0.2.9")
    found = told(ipv4(1, struct.pack("!BBHI", 3, code, 0, 0) + inside))
    assert isinstance(found, Undelivered)
    assert (str(found.peer.address), found.peer.port) == ("192.0.2.9", 4433)
    assert found.reason.startswith(reason)


def test_a_datagram_of_ipv6_that_goes_nowhere():
    inside = ipv6(17, udp(b"x", 99), "2001:db8::9")
    found = told(ipv6(58, struct.pack("!BBHI", 1, 4, 0, 0) + inside, "fd00::2"))
    assert found == Undelivered(found.peer, "the far side has no such port")
    assert (str(found.peer.address), found.peer.port) == ("2001:db8::9", 99)


def test_what_refuses_a_connection_is_not_told_twice():
    inside = ipv4(6, bytes(20), "198.19.0.1", "192.0.2.9")
    assert told(ipv4(1, struct.pack("!BBHI", 3, 13, 0, 0) + inside)) is None


@given(st.binary(max_size=200))
def test_rubbish_tells_nothing(rubbish):
    for packet in (rubbish, ipv4(17, udp(rubbish)), ipv4(1, rubbish)):
        assert told(packet) is None or isinstance(told(packet), (Named, Undelivered))


@given(st.integers(0, 120))
def test_an_answer_that_is_cut_off_tells_nothing(length):
    wire = answer("example.org.", ("example.org.", 60, "IN", "A", "192.0.2.1"))
    packet = ipv4(17, udp(wire))
    assert told(packet[: min(length, len(packet) - 1)]) is None
