"""The gateway's side of CONNECT-UDP over HTTP/1.1 (RFC 9298): one connected UDP socket for one upgraded connection."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import time
from urllib.parse import unquote

from htcondor_vpn.gateway.destinations import Address, parse_target
from htcondor_vpn.gateway.exchange import BadRequest, Head
from htcondor_vpn.wire.capsules import MAX_PAYLOAD_BYTES
from htcondor_vpn.wire.datagrams import PROTOCOL, TARGET_PREFIX, DatagramPipe
from htcondor_vpn.wire.relay import Traffic
from htcondor_vpn.wire.tls import TlsStream

#: Longer than pilots keep theirs, and than the two minutes of RFC 4787, REQ-5.
IDLE_SECONDS = 300.0

#: The answer to a request that is granted (RFC 9298, section 3.3).
GRANTED = [("Connection", "Upgrade"), ("Upgrade", PROTOCOL), ("Capsule-Protocol", "?1")]

_AT_ONCE = 64


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
    stream: TlsStream, early: bytes, far: socket.socket, traffic: Traffic, idle_seconds: float = IDLE_SECONDS
) -> None:
    """Relays between a pilot's stream and `far`, a connected UDP socket, until the pilot ends it or both are idle.

    `traffic` is counted up meanwhile. Being cancelled cuts it: the pilot sees a reset.
    """
    relay = _Relay(stream, far, traffic)
    loop = asyncio.get_running_loop()
    loop.add_reader(far, relay.receive)
    try:
        relay.pipe.start(early)
        while (left := relay.pipe.last + idle_seconds - time.monotonic()) > 0:
            if await relay.pipe.ended(left):
                break
        traffic.reset = relay.pipe.broken
    except BaseException:
        stream.abort()
        raise
    finally:
        loop.remove_reader(far)
        relay.pipe.close()


class _Relay:
    def __init__(self, stream: TlsStream, far: socket.socket, traffic: Traffic) -> None:
        self.pipe = DatagramPipe(stream, self._to_far)
        self._far, self._traffic = far, traffic

    def _to_far(self, payload: bytes | None) -> None:
        if payload is None:
            return  # pilots have no such thing to tell
        for _ in range(2):  # an error may be that of a datagram before this one
            try:
                self._far.send(payload)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(error)
            else:
                self._traffic.bytes_to_plain += len(payload)
                return

    def receive(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                payload = self._far.recv(MAX_PAYLOAD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(error)
                continue
            if self.pipe.send(payload):
                self._traffic.bytes_from_plain += len(payload)

    def _failed(self, error: OSError) -> None:
        """Tells the pilot what ICMP told this socket; any other error is a loss."""
        if error.errno == errno.ECONNREFUSED:
            self.pipe.send_unreachable()
