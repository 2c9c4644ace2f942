"""What a worker could not do is answered inside as if the engine itself could not."""

from __future__ import annotations

import asyncio
import errno
import json
import ssl

import pytest

from htcondor_vpn.errors import GatewayNameError, GatewayUnreachable, GatewayUntrusted, VpnError
from htcondor_vpn.tunnel.carrier import CarrierBusy, FlowRefused
from htcondor_vpn.tunnel.catching.refusals import Refusal, refusal_of
from htcondor_vpn.tunnel.workers.told_errors import OPENING_ERRORS, heard, told


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (FlowRefused(502, "htcondor-vpn; error=connection_refused"), Refusal.RESET),
        (FlowRefused(403, "", "the proxy p:1"), Refusal.HOST_UNREACHABLE),
        (CarrierBusy("the gateway is full", "wait"), None),
        (GatewayUnreachable("the gateway is gone", "look"), Refusal.NO_ROUTE),
        (GatewayUntrusted("another key", "look"), Refusal.NO_ROUTE),
        (GatewayNameError("no such name", "look"), Refusal.NO_ROUTE),
        (caused(GatewayUnreachable("no socket", "wait"), OSError(errno.EMFILE, "too many")), None),
        (asyncio.TimeoutError("not done"), None),
        (OSError(errno.ENFILE, "too many"), None),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Refusal.NO_ROUTE),
        (ConnectionResetError("the connection ended without close_notify"), Refusal.NO_ROUTE),
        (ssl.SSLError(1, "wrong version"), Refusal.NO_ROUTE),
    ],
)
def test_an_error_is_the_same_in_another_process(error: Exception, refusal: Refusal | None) -> None:
    there = heard(json.loads(json.dumps(told(error))))
    assert refusal_of(error) == refusal_of(there) == refusal
    assert isinstance(there, OPENING_ERRORS)
    if isinstance(error, (VpnError, FlowRefused)):
        assert (type(there), str(there)) == (type(error), str(error))
