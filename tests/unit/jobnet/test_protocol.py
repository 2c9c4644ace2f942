from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.jobnet.protocol import Connection, Message, ProtocolError, decode_body, decode_header

T = TypeVar("T")

_key = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=10)
_value = st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P")), max_size=30)


def run(work: Awaitable[T]) -> T:
    async def main() -> T:
        return await work

    return asyncio.run(main())


@given(_key, st.dictionaries(_key, _value, max_size=4), st.text(max_size=200))
def test_message_survives_the_wire(verb: str, fields: dict[str, str], text: str) -> None:
    header, _, body = Message(verb, fields, text).encode().partition(b"\n")
    assert decode_header(header) == (verb, len(body))
    decoded = decode_body(verb, body)
    assert decoded.fields == fields
    assert decoded.text == text


def test_text_that_is_not_utf8_survives() -> None:
    text = b"Env = \xff\xfe".decode("utf-8", "surrogateescape")
    body = Message("prepare", {}, text).encode().partition(b"\n")[2]
    assert decode_body("prepare", body).text == text


def test_field_with_a_line_break_is_not_sent() -> None:
    with pytest.raises(ValueError, match="line break"):
        Message("ok", {"reason": "a\nb"}).encode()


@pytest.mark.parametrize("line", [b"", b"start", b"start x", b"start -1", b"start 1 2", b"st\xffrt 1", b"start 65537"])
def test_header_that_is_none(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_header(line)


def test_only_an_ad_may_be_long() -> None:
    assert decode_header(b"prepare 1000000") == ("prepare", 1_000_000)
    with pytest.raises(ProtocolError, match="not allowed"):
        decode_header(b"prepare 100000000")


def test_message_in_pieces_with_descriptors() -> None:
    ours, theirs = socket.socketpair()

    async def talk() -> tuple[Message | None, int]:
        connection = Connection(ours)
        receiving = asyncio.ensure_future(connection.receive())
        data = Message("start", {"chirp": "a b c"}, "VpnX = 1\n").encode()
        socket.send_fds(theirs, [data[:3]], [theirs.fileno()])
        await asyncio.sleep(0)
        theirs.send(data[3:20])
        await asyncio.sleep(0)
        theirs.send(data[20:])
        message = await receiving
        (descriptor,) = connection.take_descriptors(1)
        os.close(descriptor)
        connection.close()
        return message, descriptor

    message, descriptor = run(talk())
    assert message == Message("start", {"chirp": "a b c"}, "VpnX = 1\n")
    assert descriptor > 2
    theirs.close()


def test_descriptors_that_nobody_takes_are_closed() -> None:
    ours, theirs = socket.socketpair()

    async def talk() -> list[int]:
        connection = Connection(ours)
        socket.send_fds(theirs, [b"join 0\n"], [0, 1, 2])
        await connection.receive()
        came = list(connection.descriptors)
        with pytest.raises(ProtocolError, match="3 descriptors"):
            connection.take_descriptors(1)
        connection.close()
        return came

    for descriptor in run(talk()):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    theirs.close()


def test_too_many_descriptors() -> None:
    ours, theirs = socket.socketpair()

    async def talk() -> None:
        connection = Connection(ours)
        socket.send_fds(theirs, [b"join 0\n"], [0] * 9)
        try:
            await connection.receive()
        finally:
            connection.close()

    with pytest.raises(ProtocolError, match="too many"):
        run(talk())
    theirs.close()


@pytest.mark.parametrize(("data", "ends"), [(b"", True), (b"join 0", False), (b"start 5\nab", False)])
def test_end_of_the_connection(data: bytes, ends: bool) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(data)
    theirs.close()

    async def talk() -> Message | None:
        connection = Connection(ours)
        try:
            return await connection.receive()
        finally:
            connection.close()

    if ends:
        assert run(talk()) is None
    else:
        with pytest.raises(ProtocolError, match="ended within"):
            run(talk())
