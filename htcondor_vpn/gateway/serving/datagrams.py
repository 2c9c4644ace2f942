"""The gateway's side of CONNECT-UDP over HTTP/1.1 (RFC 9298): one connected UDP socket for one upgraded connection."""

from __future__ import annotations

import re
import socket
import time
from urllib.parse import unquote

from htcondor_vpn.gateway.serving.destinations import parse_target
from htcondor_vpn.gateway.serving.exchange import BadRequest, Head
from htcondor_vpn.special_addresses import Address
from htcondor_vpn.wire.datagrams import LOOK_SECONDS, PROTOCOL, TARGET_PREFIX, CapsulePipe
from htcondor_vpn.wire.pace import FREE, Paces, takes
from htcondor_vpn.wire.relay import Traffic
from htcondor_vpn.wire.tls import TlsStream
from htcondor_vpn.wire.udp import UdpPipe

#: Longer than pilots keep theirs, and than the two minutes of RFC 4787, REQ-5.
IDLE_SECONDS = 300.0

#: The answer to a request that is granted (RFC 9298, section 3.3).
GRANTED = [("Connection", "Upgrade"), ("Upgrade", PROTOCOL), ("Capsule-Protocol", "?1")]


def parse_request(head: Head) -> tuple[Address | str, int]:
    """Returns the host and port of a request below `TARGET_PREFIX`; raises `BadRequest`."""
    match = re.fullmatch(r"([^/?#]+)/([0-9]+)/", head.target[len(TARGET_PREFIX) :])
    if head.method != "GET" or not match:
        raise BadRequest(f"UDP is asked for by GET {TARGET_PREFIX}HOST/PORT/")
    for field, word in (("connection", "upgrade"), ("upgrade", PROTOCOL)):
        if word not in (said.strip().lower() for said in head.headers.get(field, "").split(",")):
            raise BadRequest(f"UDP is asked for with {field.title()}: {word}")
    host = unquote(match[1])
    try:
        return parse_target(f"[{host}]:{match[2]}" if ":" in host else f"{host}:{match[2]}")
    except ValueError as error:
        raise BadRequest(str(error)) from error


async def relay_datagrams(
    stream: TlsStream,
    early: bytes,
    far: socket.socket,
    traffic: Traffic,
    paces: Paces = FREE,
    idle_seconds: float = IDLE_SECONDS,
) -> None:
    """Relays between a pilot's stream and `far`, a connected UDP socket, until the pilot ends it or both are idle.

    Both are closed then. Datagrams beyond `paces` are dropped. `traffic` is counted up meanwhile. Being cancelled cuts
    it: the pilot sees a reset.
    """
    pilot, destination = CapsulePipe(stream, early), UdpPipe(far)

    def outward(payload: bytes | None) -> None:
        if payload is None:
            return  # pilots have nothing to tell of ports
        if takes(paces.up, len(payload)) and destination.send(payload):
            traffic.bytes_to_plain += len(payload)

    def inward(payload: bytes | None) -> None:
        if payload is None:
            pilot.send_unreachable()
        elif takes(paces.down, len(payload)) and pilot.send(payload):
            traffic.bytes_from_plain += len(payload)

    try:
        destination.start(inward)
        pilot.start(outward)
        while (left := pilot.last + idle_seconds - time.monotonic()) > 0:
            if await pilot.ended(min(left, LOOK_SECONDS)):
                break
        traffic.reset = pilot.broken
    except BaseException:
        stream.abort()
        raise
    finally:
        destination.close()
        pilot.close()
