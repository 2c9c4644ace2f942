"""One connection of a pilot, from the handshake to its end.

Until the handshake and the first head are through there is a deadline; until the pilot is known nothing is
done for the peer; and a CONNECT, or an upgrade to UDP, turns the connection into one flow for the rest of its life.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from socket import socket

from htcondor_vpn.errors import VpnError
from htcondor_vpn.gateway.serving.connector import Connector
from htcondor_vpn.gateway.serving.datagrams import GRANTED, parse_request, relay_datagrams
from htcondor_vpn.gateway.serving.destinations import parse_target
from htcondor_vpn.gateway.serving.exchange import BadRequest, Exchange, Head
from htcondor_vpn.gateway.serving.flows import Flow
from htcondor_vpn.gateway.serving.forward import Origin, forward
from htcondor_vpn.gateway.serving.own_resources import OwnResources
from htcondor_vpn.gateway.serving.roster import Limits, Roster
from htcondor_vpn.gateway.trust.gatekeeper import Gatekeeper
from htcondor_vpn.gateway.trust.identity import CredentialRefused, Identity, Presented
from htcondor_vpn.gateway.trust.renewal import ServerTls
from htcondor_vpn.gateway.trust.strangers import Visit
from htcondor_vpn.special_addresses import Address
from htcondor_vpn.wire.datagrams import TARGET_PREFIX
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.http import ProtocolError
from htcondor_vpn.wire.relay import relay
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.unreachable import Unreachable

log = logging.getLogger(__name__)

_CHALLENGE = 'Bearer realm="htcondor-vpn"'
_RETRY_LATER = [("Retry-After", "5")]
_DRAINING = ("Proxy-Status", 'htcondor-vpn; error=proxy_internal_error; details="draining"')


@dataclass(frozen=True)
class Services:
    """What the sessions of one gateway share."""

    tls: ServerTls
    limits: Limits
    gatekeeper: Gatekeeper
    roster: Roster
    connector: Connector
    resources: OwnResources


class Session:
    """One connection. `run` is its task; `cut` and `finish` end it from outside."""

    def __init__(self, services: Services, sock: socket, peer: str, visit: Visit) -> None:
        self._services, self._sock, self._peer, self._visit = services, sock, peer, visit
        self._first_head_until: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting = self._heard = False
        self._finishing = self._finish_after_first = False
        self._cut_reason = ""

    def cut(self, reason: str) -> None:
        """Ends the session at once; its flow's peers see a reset."""
        self._cut_reason = self._cut_reason or reason
        if self._task is not None:
            self._task.cancel()

    def release(self) -> None:
        """Closes the socket, should `run` have had no chance to. Idempotent."""
        self._sock.close()
        self._visit.end()

    def finish(self, *, hear_first: bool = False) -> None:
        """Lets the session end what it is at, and nothing more; with `hear_first` its first request, if it is to come.

        A peer that has just connected is about to ask, and would lose a flow; one that has asked before knows that an
        idle connection may end.
        """
        if hear_first and not self._heard:
            self._finish_after_first = True
            return
        self._finishing = True
        if self._waiting and self._task is not None:
            self._task.cancel()

    def leave_if_idle(self) -> None:
        """Ends the session if it waits for a request, so that the pilot comes again and learns how things stand."""
        if self._waiting and self._heard:
            self.finish()

    async def run(self) -> None:
        """Serves the connection until it ends. Never raises but for a bug, or asyncio.CancelledError after `cut`."""
        self._task = asyncio.current_task()
        if self._cut_reason:
            return
        try:
            with Deadline(self._services.limits.head_seconds):
                await self._visit.turn()
            self._first_head_until = time.monotonic() + self._services.limits.head_seconds
            with Deadline(self._visit.patience_seconds(self._services.limits.head_seconds)):
                stream = await TlsStream.server(self._sock, self._services.tls.context)
            self._visit.greeted()
        except (OSError, asyncio.TimeoutError) as error:  # ssl.SSLError is an OSError
            log.debug("peer=%s no TLS connection: %s", self._peer, error)
            return
        try:
            await self._serve(Exchange(stream))
        except (OSError, asyncio.TimeoutError) as error:
            log.debug("peer=%s the connection broke: %s", self._peer, error)
        finally:
            stream.abort()

    async def _serve(self, exchange: Exchange) -> None:
        """Answers one request after the other."""
        while True:
            try:
                head = await self._next_head(exchange)
                if head is None:
                    break
                pilot = await self._admitted(exchange, head)
                if pilot is None:
                    break
                exchange.paces = self._services.roster.shares.of(pilot.name)
                if self._services.roster.draining and not _for_ourselves(head):
                    await exchange.answer(503, [_DRAINING, *_RETRY_LATER], b"this gateway drains\n", close=True)
                    break
                if head.method == "CONNECT":
                    if await self._connect(exchange, head.target, pilot):
                        return
                elif head.target.startswith(TARGET_PREFIX):
                    if await self._datagrams(exchange, head, pilot):
                        return
                elif head.target.startswith("/"):
                    await self._services.resources.answer(exchange, head, pilot)
                else:
                    await self._forward(exchange, head, pilot)
            except BadRequest as error:
                log.debug("peer=%s a bad request: %s", self._peer, error)
                if exchange.answerable:
                    await exchange.answer(error.status, body=f"{error}\n".encode(), close=True)
                break
            except asyncio.TimeoutError:
                if exchange.answerable:
                    await exchange.answer(408, close=True)
                break
            if self._cut_reason:  # in a moment at which the cancellation got lost, as asyncio.wait_for can lose it
                return
            if self._finishing or not exchange.next():
                break
        await exchange.close()

    async def _next_head(self, exchange: Exchange) -> Head | None:
        """Waits for a request; raises asyncio.TimeoutError if it does not come, or not whole, in time."""
        if self._finishing:
            return None
        self._waiting = True
        try:
            if self._first_head_until is not None:
                with Deadline(self._first_head_until - time.monotonic()):
                    head = await exchange.head()
                self._first_head_until, self._heard = None, True
                self._finishing = self._finishing or self._finish_after_first
                return head
            with Deadline(self._services.limits.idle_seconds):
                await exchange.arrived()
        except asyncio.CancelledError:
            if self._cut_reason or not self._finishing:
                raise
            return None
        finally:
            self._waiting = False
        with Deadline(self._services.limits.head_seconds):
            return await exchange.head()

    async def _admitted(self, exchange: Exchange, head: Head) -> Identity | None:
        """Returns the pilot for whom this request is served, or answers why it is not."""
        proxied = not head.target.startswith("/")
        bearer = _bearer(head, "proxy-authorization")
        if bearer is None and (head.method == "CONNECT" or not proxied):
            # In a request to be passed on, Authorization is meant for the server.
            bearer = _bearer(head, "authorization")
        try:
            pilot = self._services.gatekeeper.admit(Presented(bearer, exchange.stream.peer_certificate))
        except VpnError as error:
            log.error("%s", error)
            await exchange.answer(503, _RETRY_LATER, close=True)
            return None
        except CredentialRefused as refusal:
            log.info("peer=%s is refused: %s", self._peer, refusal)
            self._visit.refused()
            challenge = _CHALLENGE if bearer is None else f'{_CHALLENGE}, error="invalid_token"'
            name = "Proxy-Authenticate" if proxied else "WWW-Authenticate"
            await exchange.answer(407 if proxied else 401, [(name, challenge)], close=True)
            return None
        self._visit.authenticated()
        crowd = self._services.roster.bind(self, pilot)
        if crowd is not None:
            log.warning("pilot=%s is turned away: too many connections of the %s", pilot.name, crowd.name.lower())
            body = f"too many connections of the {crowd.name.lower()}\n".encode()
            await exchange.answer(crowd.value, _RETRY_LATER, body, close=True)
            return None
        return pilot

    async def _connect(self, exchange: Exchange, target: str, pilot: Identity) -> bool:
        """Serves a CONNECT; returns whether the connection became the flow's, which has ended then."""
        try:
            host, port = parse_target(target)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        with self._flow(pilot, target) as flow:
            try:
                plain = await self._connected(self._services.connector.connect(host, port, pilot.name), flow)
            except Unreachable as error:
                flow.outcome = error.error
                await _answer_unreachable(exchange, error)
                return False
            with plain:
                early = await exchange.become_flow()
                await relay(exchange.stream, plain, early, flow.traffic, exchange.paces)
        return True

    async def _datagrams(self, exchange: Exchange, head: Head, pilot: Identity) -> bool:
        """Serves a request for UDP; returns whether the connection was upgraded, and has ended then."""
        host, port = parse_request(head)
        with self._flow(pilot, f"{_shown(host)}:{port}/udp") as flow:
            try:
                far = await self._connected(self._services.connector.connect_datagrams(host, port, pilot.name), flow)
            except Unreachable as error:
                flow.outcome = error.error
                await _answer_unreachable(exchange, error)
                return False
            with far:
                early = await exchange.upgrade(GRANTED)
                await relay_datagrams(exchange.stream, early, far, flow.traffic, exchange.paces)
        return True

    async def _forward(self, exchange: Exchange, head: Head, pilot: Identity) -> None:
        try:
            origin = Origin(head.target)
        except ValueError as error:
            raise BadRequest(str(error)) from error
        with self._flow(pilot, f"{origin.host}:{origin.port}") as flow:
            try:
                connecting = self._services.connector.connect(origin.host, origin.port, pilot.name)
                with await self._connected(connecting, flow) as plain:
                    await forward(exchange, head, origin, plain, flow.traffic)
            except Unreachable as error:
                flow.outcome = error.error
                await _answer_unreachable(exchange, error)

    async def _connected(self, connecting: Awaitable[socket], flow: Flow) -> socket:
        """Connects for a flow; raises `Unreachable`, and asyncio.CancelledError if the session was cut meanwhile."""
        plain = await connecting
        if self._cut_reason:
            plain.close()
            raise asyncio.CancelledError
        with suppress(OSError):  # reset already, which will be found soon enough
            flow.via = str(plain.getpeername()[0])
        return plain

    @contextmanager
    def _flow(self, pilot: Identity, target: str) -> Iterator[Flow]:
        """Counts a flow while it lasts, and writes its line into the log at its end."""
        flows = self._services.roster.flows
        flow = flows.begin(pilot.name, target)
        try:
            yield flow
        except BaseException:
            flow.traffic.reset = True
            raise
        finally:
            outcome = self._cut_reason or flow.outcome or ("reset" if flow.traffic.reset else "closed")
            flows.end(flow, outcome)
            log.info(
                "flow pilot=%s to=%s via=%s bytes_up=%d bytes_down=%d seconds=%.3f outcome=%s",
                pilot.name, target, flow.via or "-", flow.traffic.bytes_to_plain, flow.traffic.bytes_from_plain,
                flow.seconds, outcome,
            )  # fmt: skip


def _for_ourselves(head: Head) -> bool:
    """Whether a request is for one of the gateway's own resources, which do not begin a flow."""
    return head.target.startswith("/") and not head.target.startswith(TARGET_PREFIX)


def _shown(host: Address | str) -> str:
    return f"[{host}]" if isinstance(host, IPv6Address) else str(host)


def _bearer(head: Head, field: str) -> str | None:
    scheme, _, token = head.headers.get(field, "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def _answer_unreachable(exchange: Exchange, error: Unreachable) -> None:
    if not exchange.answerable:
        raise ProtocolError(str(error))
    await exchange.answer(error.status, [("Proxy-Status", error.proxy_status)], f"{error}\n".encode())
