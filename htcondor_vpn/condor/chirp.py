"""Chirp: how a program beside a job talks to its starter (`condor_chirp`, HTCondor's src/condor_chirp).

The starter listens on the loopback of its own network namespace and writes host, port and a cookie into `.chirp.config`
of the job's scratch folder. A client sends lines and gets a line with a number for each: negative is an error.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple, Union

Value = Union[bool, int, float, str]

#: The longest line that a starter accepts (CHIRP_LINE_MAX).
LONGEST_LINE_BYTES = 1024


class ChirpError(OSError):
    """The starter cannot be reached, does not speak Chirp, or refused a command."""


class ChirpConfig(NamedTuple):
    """The content of a `.chirp.config`."""

    host: str
    port: int
    cookie: str


def parse_config(text: str) -> ChirpConfig:
    """Parses a `.chirp.config`; raises ValueError, also for a host that is not a loopback address."""
    words = text.split()
    if len(words) != 3 or not re.fullmatch(r"[0-9]{1,5}", words[1]) or not 0 < int(words[1]) < 65536:
        raise ValueError("a chirp configuration is a host, a port and a cookie")
    if not ip_address(words[0]).is_loopback:
        raise ValueError(f"the starter's chirp address {words[0]} is not a loopback address")
    return ChirpConfig(words[0], int(words[1]), words[2])


def literal(value: Value) -> str:
    """Writes a value as a ClassAd literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def line(command: str, *words: str) -> bytes:
    """Encodes one command; white space and backslashes in `words` are escaped. Raises ValueError if it is too long."""
    escaped = (re.sub(r"([\s\\])", r"\\\1", word) for word in words)
    data = " ".join((command, *escaped)).encode() + b"\n"
    if len(data) > LONGEST_LINE_BYTES:
        raise ValueError(f"a chirp command of {len(data)} bytes is too long")
    return data


async def set_attributes_delayed(config: ChirpConfig, attributes: Mapping[str, Value]) -> None:
    """Sets job attributes, which the starter sends on with its next update (`set_job_attr_delayed`).

    All commands go out at once: the starter takes one from its socket after the other. It answers 0 and drops an
    attribute whose name CHIRP_DELAYED_UPDATE_PREFIX does not allow. Raises `ChirpError`; set a deadline around it.
    """
    commands = [line("cookie", config.cookie)]
    commands += [line("set_job_attr_delayed", name, literal(value)) for name, value in attributes.items()]
    try:
        reader, writer = await asyncio.open_connection(config.host, config.port, limit=LONGEST_LINE_BYTES)
    except OSError as error:
        raise ChirpError(error.errno, f"the starter's chirp port cannot be reached: {error.strerror}") from error
    try:
        writer.write(b"".join(commands))
        for command in commands:
            await _result(reader, command)
    except OSError as error:
        if isinstance(error, ChirpError):
            raise
        raise ChirpError(error.errno, f"the starter's chirp connection broke: {error.strerror}") from error
    finally:
        writer.close()


async def is_a_starters(config: ChirpConfig) -> bool:
    """Whether at this port listens who knows the cookie, as the starter does; set a deadline around it."""
    try:
        await set_attributes_delayed(config, {})
    except ChirpError:
        return False
    return True


async def _result(reader: asyncio.StreamReader, command: bytes) -> None:
    verb = command.split(b" ", 1)[0].decode()
    try:
        answer = (await reader.readuntil(b"\n")).decode().strip()
        code = int(answer)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise ChirpError(0, f"the starter's answer to chirp's {verb} is not a number") from error
    if code < 0:
        raise ChirpError(0, f"the starter answered chirp's {verb} with error {code}")
