import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.wire.capsules import (
    DATAGRAM,
    MAX_PAYLOAD_BYTES,
    PORT_UNREACHABLE,
    CapsuleDecoder,
    encode,
    encode_integer,
    encode_payload,
)
from htcondor_vpn.wire.http import ProtocolError


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(37, "25"), (15293, "7bbd"), (494878333, "9d7f3e7d"), (151288809941952652, "c2197c5eff14e88c")],
)
def test_integers_of_rfc_9000(value, encoded):
    assert encode_integer(value).hex() == encoded


@pytest.mark.parametrize("bits", [6, 14, 30])
def test_an_integer_takes_the_shortest_form(bits):
    assert len(encode_integer((1 << bits) - 1)) * 2 == len(encode_integer(1 << bits))


def test_an_integer_that_is_too_large():
    with pytest.raises(ValueError, match="62 bits"):
        encode_integer(1 << 62)


def test_the_datagram_of_rfc_9298():
    assert encode_payload(b"abc").hex() == "0004" + "00" + "616263"


_capsules = st.lists(
    st.one_of(
        st.tuples(st.just(DATAGRAM), st.binary(max_size=300)),
        st.tuples(st.just(PORT_UNREACHABLE), st.just(b"")),
        st.tuples(st.sampled_from([1, 0x17, 0x2E, 1 << 40]), st.binary(max_size=300)),
    )
)


@given(_capsules, st.lists(st.integers(1, 400)))
def test_capsules_in_pieces_of_any_size(capsules, sizes):
    stream = b"".join(encode_payload(value) if kind == DATAGRAM else encode(kind, value) for kind, value in capsules)
    decoder, found, offset = CapsuleDecoder(), [], 0
    for size in [*sizes, len(stream) or 1]:
        found += decoder.feed(stream[offset : offset + size])
        offset += size
    assert found == [capsule for capsule in capsules if capsule[0] in (DATAGRAM, PORT_UNREACHABLE)]


@given(st.binary(max_size=2000))
def test_whatever_comes_is_capsules_or_an_error(data):
    decoder = CapsuleDecoder()
    try:
        decoder.feed(data)
    except ProtocolError:
        return
    assert len(decoder._data) <= len(data)


def test_other_contexts_are_dropped():
    assert CapsuleDecoder().feed(encode(DATAGRAM, b"\x02other") + encode(DATAGRAM) + encode_payload(b"")) == [
        (DATAGRAM, b"")
    ]


def test_a_long_unknown_capsule_is_not_kept():
    decoder = CapsuleDecoder()
    decoder.feed(encode_integer(0x1234) + encode_integer(1 << 40))
    for _ in range(100):
        assert decoder.feed(bytes(65536)) == []
        assert len(decoder._data) == 0


def test_the_longest_payload_and_one_longer():
    decoder = CapsuleDecoder()
    assert decoder.feed(encode_payload(bytes(MAX_PAYLOAD_BYTES))) == [(DATAGRAM, bytes(MAX_PAYLOAD_BYTES))]
    with pytest.raises(ProtocolError):
        decoder.feed(encode_integer(DATAGRAM) + encode_integer(MAX_PAYLOAD_BYTES + 2))
