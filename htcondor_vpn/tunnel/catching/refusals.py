"""How a connect that failed is answered inside, so that the application gets the errno that it would get outside."""

from __future__ import annotations

import asyncio
import enum
import errno
import re

from htcondor_vpn.tunnel.carrier import CarrierBusy, FlowRefused

#: This process has no descriptors or memory left, until some flows end.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_REASON = re.compile(r"\berror=([a-z_]+)")


class Refusal(enum.IntEnum):
    """What answers a SYN; the value is the mark by which the packet is known to the rules (nft(8), `reject`)."""

    RESET = 2
    NO_ROUTE = 3
    HOST_UNREACHABLE = 4
    PROHIBITED = 5

    @property
    def statement(self) -> str:
        """The statement of nft's."""
        if self is Refusal.RESET:
            return "meta l4proto tcp reject with tcp reset"
        return f"reject with icmpx type {_ICMPX[self]}"


_ICMPX = {
    Refusal.NO_ROUTE: "no-route",
    Refusal.HOST_UNREACHABLE: "host-unreachable",
    Refusal.PROHIBITED: "admin-prohibited",
}

#: By the error types of RFC 9209; None leaves the SYN without an answer, so that the application's kernel sends it
#: again and gives up when it would have without a tunnel.
_BY_REASON: dict[str, Refusal | None] = {
    "connection_refused": Refusal.RESET,
    "connection_timeout": None,
    "connection_limit_reached": None,
    "destination_ip_prohibited": Refusal.PROHIBITED,
}

#: By the answer's status, where it gives no such reason: too much at present, or unknown to who was asked (RFC 9110).
_BY_STATUS: dict[int, Refusal | None] = {
    404: Refusal.PROHIBITED,
    405: Refusal.PROHIBITED,
    429: None,
    501: Refusal.PROHIBITED,
    503: None,
}


def refusal_of(error: Exception) -> Refusal | None:
    """Returns the answer to a connect whose flow failed with `error`; None is none.

    | what failed | answer | errno with IPv4, IPv6 |
    |---|---|---|
    | the far side refuses | TCP reset | ECONNREFUSED |
    | the far side is silent; gateway too busy, or the engine | none | ETIMEDOUT, in the end |
    | the destination is forbidden, or there is no such service | "administratively prohibited" | EHOSTUNREACH, EACCES |
    | the gateway has no route, or says nothing clear | "host unreachable" | EHOSTUNREACH |
    | there is no gateway to ask | "no route" | ENETUNREACH |
    """
    if isinstance(error, FlowRefused):
        told = _REASON.search(error.reason)
        by_status = _BY_STATUS.get(error.status, Refusal.HOST_UNREACHABLE)
        return _BY_REASON.get(told[1], by_status) if told else by_status
    why = error.__cause__ or error
    if isinstance(why, OSError) and why.errno in _EXHAUSTED:
        return None
    if isinstance(error, (asyncio.TimeoutError, CarrierBusy)):
        return None
    return Refusal.NO_ROUTE
