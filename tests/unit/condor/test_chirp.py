from __future__ import annotations

import asyncio

import pytest

from htcondor_vpn.condor import chirp


def test_config() -> None:
    assert chirp.parse_config("127.0.0.1 4711 abc\n") == chirp.ChirpConfig("127.0.0.1", 4711, "abc")
    assert chirp.parse_config("::1 4711 abc").host == "::1"


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1 1", "127.0.0.1 x c", "127.0.0.1 0 c", "127.0.0.1 65536 c", "192.0.2.1 1 c", "host 1 c"]
)
def test_config_that_is_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  its own words, or those of ipaddress
        chirp.parse_config(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (1.5, "1.5"), (True, "true"), (False, "false"), ('a "b" \\c', '"a \\"b\\" \\\\c"')],
)
def test_literal(value: chirp.Value, text: str) -> None:
    assert chirp.literal(value) == text


def test_words_are_escaped() -> None:
    assert chirp.line("set_job_attr_delayed", "Name", '"a b\\"') == b'set_job_attr_delayed Name "a\\ b\\\\"\n'


def test_line_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="too long"):
        chirp.line("ulog", "x" * 2000)


async def _session(answers: bytes) -> bytes:
    """What a client sends to a starter that gives `answers`; what the client raises is raised."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def starter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [await reader.readline() for _ in range(2)]
        heard.set_result(b"".join(lines))
        writer.write(answers)
        writer.close()

    server = await asyncio.start_server(starter, "127.0.0.1", 0)
    async with server:
        config = chirp.ChirpConfig("127.0.0.1", server.sockets[0].getsockname()[1], "c00kie")
        await chirp.set_attributes_delayed(config, {"ChirpX": 5})
        return await heard


def test_session() -> None:
    assert asyncio.run(_session(b"0\n0\n")) == b"cookie c00kie\nset_job_attr_delayed ChirpX 5\n"


@pytest.mark.parametrize("answers", [b"-1\n", b"0\n-11\n", b"", b"0\n", b"what?\n", b"0" * 5000])
def test_starter_that_refuses_or_babbles(answers: bytes) -> None:
    with pytest.raises(chirp.ChirpError):
        asyncio.run(_session(answers))


def test_starter_that_is_not_there() -> None:
    with pytest.raises(chirp.ChirpError, match="cannot be reached"):
        asyncio.run(chirp.set_attributes_delayed(chirp.ChirpConfig("127.0.0.1", 1, "c"), {}))
