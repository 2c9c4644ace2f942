"""What an application is told of a flow that could not be opened."""

from __future__ import annotations

import asyncio
import errno

import pytest

from htcondor_vpn.errors import GatewayUnreachable
from htcondor_vpn.tunnel.carrier import CarrierBusy, FlowRefused
from htcondor_vpn.tunnel.catching.refusals import Refusal, refusal_of


@pytest.mark.parametrize(
    ("status", "reason", "refusal"),
    [
        (502, "htcondor-vpn; error=connection_refused", Refusal.RESET),
        (502, "socks5; error=connection_refused", Refusal.RESET),
        (504, "htcondor-vpn; error=connection_timeout", None),
        (403, 'htcondor-vpn; error=destination_ip_prohibited; details="private"', Refusal.PROHIBITED),
        (502, "htcondor-vpn; error=destination_ip_unroutable", Refusal.HOST_UNREACHABLE),
        (502, "socks5; error=connection_terminated", Refusal.HOST_UNREACHABLE),
        (500, "", Refusal.HOST_UNREACHABLE),
        (429, "", None),
        (501, "it carries no datagrams", Refusal.PROHIBITED),
        (503, "htcondor-vpn; error=proxy_internal_error", None),
    ],
)
def test_what_a_carrier_says(status: int, reason: str, refusal: Refusal | None) -> None:
    assert refusal_of(FlowRefused(status, reason)) is refusal


def test_what_happens_on_the_way_to_it() -> None:
    assert refusal_of(GatewayUnreachable("gone")) is Refusal.NO_ROUTE
    assert refusal_of(ConnectionResetError()) is Refusal.NO_ROUTE
    assert refusal_of(asyncio.TimeoutError()) is None
    exhausted = GatewayUnreachable("no descriptors")
    exhausted.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert refusal_of(exhausted) is None
    assert refusal_of(CarrierBusy("full")) is None
