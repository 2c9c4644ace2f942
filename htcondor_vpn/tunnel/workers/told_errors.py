"""What went wrong in one process as a message to another: it says there what it would have said here."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Union

from htcondor_vpn.errors import VpnError, by_name
from htcondor_vpn.tunnel.carrier import FlowRefused

#: What the opening of a flow may fail with (see `Carrier`); asyncio's own is an OSError from Python 3.11 on.
OPENING_ERRORS = (FlowRefused, VpnError, OSError, ssl.SSLError, asyncio.TimeoutError)
OpeningError = Union[VpnError, OSError, asyncio.TimeoutError]


def told(error: Exception) -> dict[str, Any]:
    """Makes a message of one of `OPENING_ERRORS`."""
    if isinstance(error, FlowRefused):
        return {"refused": [error.status, error.reason, error.who]}
    if isinstance(error, VpnError):
        because = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        return {"error": type(error).__name__, "cause": error.cause, "remedy": error.remedy, "errno": because}
    if isinstance(error, asyncio.TimeoutError):
        return {"late": str(error)}
    number = None if isinstance(error, ssl.SSLError) else getattr(error, "errno", None)
    return {"errno": number, "said": getattr(error, "strerror", None) or str(error)}


def heard(message: dict[str, Any]) -> OpeningError:
    """Makes the error of the message; with an errno where the other process had one, be it of the error's cause."""
    if "refused" in message:
        return FlowRefused(*message["refused"])
    if "error" in message:
        error = by_name(message["error"], message["cause"], message["remedy"])
        if message["errno"] is not None:
            error.__cause__ = OSError(message["errno"], "in another process")
        return error
    if "late" in message:
        return asyncio.TimeoutError(message["late"])
    number = message["errno"]
    return OSError(message["said"]) if number is None else OSError(number, message["said"])
