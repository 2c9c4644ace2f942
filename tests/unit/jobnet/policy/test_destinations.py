from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.policy.destinations import Destination, parse_destination


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", Destination(ip_network("10.0.0.0/8"))),
        ("192.0.2.1 port 80", Destination(ip_network("192.0.2.1/32"), "", (80, 80))),
        ("Storage.Example.org. TCP port 1094-1095", Destination("storage.example.org", "tcp", (1094, 1095))),
        ("::/0 udp", Destination(ip_network("::/0"), "udp")),
    ],
)
def test_destination(text: str, expected: Destination) -> None:
    assert parse_destination(text) == expected
    assert parse_destination(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither a network nor a host's name"),
        ("10.0.0.1/8", "bits set behind its prefix"),
        ("10.0.0.0/33", "is no network"),
        ("300.1.2.3", "neither a network nor a host's name"),
        ("*.example.org", "neither a network nor a host's name"),
        ("example.org port 0", "from 1 to 65535"),
        ("example.org port 9-8", "from 1 to 65535"),
        ("example.org sctp port 9", "then tcp or udp"),
        ("example.org port 9 tcp", "then tcp or udp"),
    ],
)
def test_text_that_is_no_destination(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_destination(text)


@given(st.text(max_size=60))
def test_any_text_is_a_destination_that_reads_back_or_an_error(text: str) -> None:
    try:
        found = parse_destination(text)
    except ValueError:
        return
    assert parse_destination(str(found)) == found
