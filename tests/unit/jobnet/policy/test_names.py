from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from htcondor_vpn.jobnet.policy.destinations import parse_destination
from htcondor_vpn.jobnet.policy.look_ups import LookUps, NotResolved
from htcondor_vpn.jobnet.policy.names import ANSWER_SECONDS, Names

asked: list[str] = []


def lookup(name: str, _port: None) -> Any:
    asked.append(name)
    if name == "known.example":
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def check(names: Names, *texts: str) -> None:
    asyncio.run(names.check([parse_destination(text) for text in texts]))


def test_names_are_asked_for_once() -> None:
    asked.clear()
    names = Names(LookUps(ANSWER_SECONDS, lookup))
    check(names, "known.example tcp port 80", "known.example", "10.0.0.0/8")
    check(names, "known.example")
    assert asked == ["known.example"]


def test_name_without_an_address() -> None:
    names = Names(LookUps(ANSWER_SECONDS, lookup))
    for _ in range(2):
        with pytest.raises(NotResolved, match="unknown.example: Name or service not known"):
            check(names, "known.example", "unknown.example")
