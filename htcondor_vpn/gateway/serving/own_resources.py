"""What a gateway answers itself: its state, a speed test, DNS, and whether a host answers an echo request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from ipaddress import ip_address
from urllib.parse import parse_qs

from htcondor_vpn.gateway.serving import resolver
from htcondor_vpn.gateway.serving.echoes import Echoes
from htcondor_vpn.gateway.serving.exchange import Exchange, Head
from htcondor_vpn.gateway.serving.families import Families
from htcondor_vpn.gateway.serving.resolver import Resolver
from htcondor_vpn.gateway.serving.standing import Standing
from htcondor_vpn.gateway.trust.identity import Identity
from htcondor_vpn.special_addresses import unmapped
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.ping import MAX_PAYLOAD_BYTES
from htcondor_vpn.wire.unreachable import Unreachable

STATE = "/.well-known/htcondor-vpn"
SPEED = "/.well-known/htcondor-vpn/bytes"
ECHO = "/.well-known/htcondor-vpn/echo"
DNS = "/dns-query"

#: The most that a speed test moves, bytes.
MAX_SPEED_BYTES = 64 * 1024 * 1024
_ANSWER_SECONDS = 20.0
_SPEED_SECONDS = 120.0
_ZEROS = bytes(256 * 1024)
_VERSION = version("htcondor-vpn")
#: Known by it, whatever address and which of its processes is asked: they are forked with it.
_INSTANCE = secrets.token_hex(8)

_Handler = Callable[[Exchange, Head, Identity], Awaitable[None]]


class OwnResources:
    """Answers requests for the gateway's own resources; `standing` tells how it stands now."""

    def __init__(self, families: Families, dns: Resolver, standing: Callable[[], Standing], echoes: Echoes) -> None:
        self._families, self._resolver, self._standing, self._echoes = families, dns, standing, echoes
        self._handlers: dict[str, dict[str, _Handler]] = {
            STATE: {"GET": self._state},
            SPEED: {"GET": self._send_bytes, "POST": self._take_bytes},
            ECHO: {"POST": self._echo},
            DNS: {"GET": self._query_in_target, "POST": self._query_in_body},
        }

    async def answer(self, exchange: Exchange, head: Head, pilot: Identity) -> None:
        """Answers one request of `pilot`.

        Raises `BadRequest`, OSError, and asyncio.TimeoutError for a peer that is too slow.
        """
        path = head.target.partition("?")[0]
        handlers = self._handlers.get(path)
        if handlers is None:
            await exchange.answer(404)
        elif head.method not in handlers:
            await exchange.answer(405, [("Allow", ", ".join(handlers))])
        else:
            with Deadline(_SPEED_SECONDS if path == SPEED else _ANSWER_SECONDS):
                await handlers[head.method](exchange, head, pilot)

    async def _state(self, exchange: Exchange, head: Head, _pilot: Identity) -> None:
        standing = self._standing()
        state = {
            "version": _VERSION,
            "instance": _INSTANCE,
            "families": self._families.routed(),
            "udp": True,
            "flows": standing.flows,
            "load": round(standing.load, 3),
            "draining": standing.draining,
            "time": round(time.time(), 3),
            **({"padding": padding} if (padding := _parameter(head, "padding")) else {}),
        }
        await exchange.answer_json(200, state)

    async def _send_bytes(self, exchange: Exchange, head: Head, _pilot: Identity) -> None:
        count = _parameter(head, "count") or "0"
        if not re.fullmatch(r"[0-9]{1,9}", count) or int(count) > MAX_SPEED_BYTES:
            await exchange.answer(400, body=f"count is not a number up to {MAX_SPEED_BYTES}\n".encode())
            return
        left = int(count)
        fields = [("Content-Length", str(left)), ("Cache-Control", "no-store")]
        await exchange.begin(200, [*fields, ("Content-Type", "application/octet-stream")])
        while left:
            piece = _ZEROS[:left]
            await exchange.send(piece)
            left -= len(piece)
            await asyncio.sleep(0)  # a reader that keeps up must not keep the others from their turn
        await exchange.end()

    async def _take_bytes(self, exchange: Exchange, head: Head, _pilot: Identity) -> None:
        if _declared_length(head) > MAX_SPEED_BYTES:
            await exchange.answer(413, close=True)
            return
        taken = 0
        async for chunk in exchange.chunks(MAX_SPEED_BYTES):
            taken += len(chunk)
        await exchange.answer_json(200, {"bytes": taken})

    async def _echo(self, exchange: Exchange, head: Head, pilot: Identity) -> None:
        try:
            address = unmapped(ip_address(_parameter(head, "address") or ""))
        except ValueError as error:
            await exchange.answer(400, body=f"{error}\n".encode(), close=True)
            return
        payload = await exchange.body(MAX_PAYLOAD_BYTES)
        try:
            answer = await self._echoes.ask(pilot.name, address, payload)
        except Unreachable as error:
            await exchange.answer(error.status, [("Proxy-Status", error.proxy_status)], f"{error}\n".encode())
        else:
            fields = [("Content-Type", "application/octet-stream"), ("Cache-Control", "no-store")]
            await exchange.answer(200, fields, answer)

    async def _query_in_target(self, exchange: Exchange, head: Head, pilot: Identity) -> None:
        text = _parameter(head, "dns") or ""
        try:
            query = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            query = b""
        await self._resolve(exchange, query, pilot)

    async def _query_in_body(self, exchange: Exchange, head: Head, pilot: Identity) -> None:
        if head.headers.get("content-type", "").partition(";")[0].strip().lower() != resolver.MEDIA_TYPE:
            await exchange.answer(415, close=True)
            return
        await self._resolve(exchange, await exchange.body(resolver.MAX_QUERY_BYTES), pilot)

    async def _resolve(self, exchange: Exchange, query: bytes, pilot: Identity) -> None:
        try:
            answer = await self._resolver.answer(query, pilot.name)
        except ValueError as error:
            await exchange.answer(400, body=f"{error}\n".encode())
            return
        # Pilots keep no HTTP cache: the records' own times to live are in the message.
        await exchange.answer(200, [("Content-Type", resolver.MEDIA_TYPE), ("Cache-Control", "no-store")], answer)


def _parameter(head: Head, name: str) -> str | None:
    return parse_qs(head.target.partition("?")[2]).get(name, [None])[0]


def _declared_length(head: Head) -> int:
    return int(head.headers.get("content-length", "0"))  # h11 has checked that it is a number
