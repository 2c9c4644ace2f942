"""Spans say of every address what trying the lists one after the other would say."""

from ipaddress import IPv4Address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.counting.spans import spans
from htcondor_vpn.jobnet.policy.destinations import Destination, parse_destination

#: So close to each other that they often overlap, and at both ends of all addresses.
networks = st.builds(
    lambda base, length: ip_network((base << 24, length), strict=False),
    st.integers(0, 255).filter(lambda base: base < 4 or base > 251),
    st.integers(0, 12),
)
destinations = st.builds(
    Destination, networks, st.sampled_from(["", "", "tcp"]), st.sampled_from([None, None, (80, 80)])
)
lists = st.lists(st.lists(destinations, max_size=4), max_size=4)


@given(lists, st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_every_address_is_in_one_span_and_what_it_says_is_so(some, addresses):
    found = spans(some, 4)
    assert found[0].first == IPv4Address("0.0.0.0")
    assert found[-1].last == IPv4Address("255.255.255.255")
    assert all(int(one.last) + 1 == int(other.first) for one, other in zip(found, found[1:]))
    edges = [address for span in found for address in (span.first, span.last)]
    for address in (*edges, *map(IPv4Address, addresses)):
        (span,) = [span for span in found if span.first <= address <= span.last]
        covering = [[each for each in destinations if address in each.where] for destinations in some]
        number = next((number for number, each in enumerate(covering) if each), None)
        assert span.number == number
        unconditional = number is not None and any(each[1:] == ("", None) for each in covering[number])
        assert span.depends == (number is not None and not unconditional)


def test_names_and_the_other_version_are_not_in_it():
    some = [tuple(map(parse_destination, ["storage.example.org", "2001:db8::/32"]))]
    assert [span.number for span in spans(some, 4)] == [None]
    assert [span.number for span in spans(some, 6)] == [None, 0, None]
