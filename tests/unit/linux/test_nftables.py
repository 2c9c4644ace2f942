"""Elements as the kernel tells them: those that look alike are read all at once, others one by one."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.linux.netlink import attribute
from htcondor_vpn.linux.nftables import Count, _counts

_NESTED = 0x8000

counts = st.builds(Count, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
sets = st.dictionaries(st.binary(min_size=16, max_size=16), counts, max_size=20)


def element(key, count, *besides):
    """As linux/netfilter/nf_tables.h has an element with a counter: NFTA_LIST_ELEM and what is in it."""
    numbers = attribute(1, struct.pack("!Q", count.bytes)) + attribute(2, struct.pack("!Q", count.packets))
    counter = attribute(1, b"counter\0") + attribute(2 | _NESTED, numbers)
    inner = attribute(1 | _NESTED, attribute(1, key)) + b"".join(besides) + attribute(7 | _NESTED, counter)
    return attribute(1 | _NESTED, inner)


def payload(elements):
    return bytes(4) + attribute(1, b"table\0") + attribute(2, b"set\0") + attribute(3 | _NESTED, b"".join(elements))


@given(sets)
def test_elements_that_look_alike(found):
    assert _counts(payload(element(key, count) for key, count in found.items())) == found


@given(sets, sets)
def test_elements_of_which_some_have_more(found, others):
    """A timeout, say: such a message is longer, or an element ends where another one begins."""
    timeout = attribute(4, struct.pack("!Q", 1000))
    elements = [element(key, count) for key, count in found.items()]
    elements += [element(key, count, timeout) for key, count in others.items()]
    assert _counts(payload(elements)) == found | others


def test_a_message_without_elements():
    assert _counts(bytes(4) + attribute(1, b"table\0")) == {}
