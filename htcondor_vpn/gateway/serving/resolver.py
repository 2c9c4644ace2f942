"""DNS over HTTPS (RFC 8484): forwards a pilot's queries to the name servers of the gateway's host.

The pilots' messages are passed on as they are but for the id: theirs is zero as the RFC advises, and a query over UDP
needs one that cannot be guessed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Hashable
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.resolver

from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.fair_share import FairTurns

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/dns-message"
MAX_QUERY_BYTES = 4096
_ATTEMPT_SECONDS = 2.0
_TOTAL_SECONDS = 8.0
_MAX_AT_ONCE = 256
_ZONE_TRANSFERS = {dns.rdatatype.AXFR, dns.rdatatype.IXFR}


class Resolver:
    """Forwards to the name servers that `resolv_conf` names; it is read again when it changes."""

    def __init__(self, resolv_conf: Path = Path("/etc/resolv.conf"), port: int = 53) -> None:
        self._resolv_conf, self._port = resolv_conf, port
        self._stamp: tuple[int, int] | None = None
        self._servers: list[str] = []
        self._turns = FairTurns(_MAX_AT_ONCE)

    async def answer(self, query: bytes, asker: Hashable = None) -> bytes:
        """Returns the DNS message that answers the DNS message `query`; SERVFAIL if no name server does.

        Those who ask share what may be asked at once. Raises ValueError if `query` is no query.
        """
        try:
            message = dns.message.from_wire(query)
        except (dns.exception.DNSException, ValueError) as error:
            raise ValueError(f"not a DNS message: {error}") from error
        if message.flags & dns.flags.QR:
            raise ValueError("a DNS answer, not a query")
        if message.opcode() != dns.opcode.QUERY:
            # An UPDATE would carry the gateway's address, which a zone may trust.
            return _error(message, dns.rcode.NOTIMP)
        if len(message.question) != 1:
            return _error(message, dns.rcode.FORMERR)
        if message.question[0].rdtype in _ZONE_TRANSFERS:
            return _error(message, dns.rcode.REFUSED)
        their_id, message.id = message.id, secrets.randbelow(1 << 16)
        try:
            async with self._turns.turn(asker):
                with Deadline(_TOTAL_SECONDS):
                    found = await self._ask(message)
        except asyncio.TimeoutError:
            found = None
        message.id = their_id
        if found is None:
            return _error(message, dns.rcode.SERVFAIL)
        found.id = their_id
        return found.to_wire(max_size=65535)

    async def _ask(self, query: dns.message.Message) -> dns.message.Message | None:
        """Asks one name server after the other, twice; returns the first answer that is none of a broken server."""
        last = None
        for server in self._name_servers() * 2:
            try:
                last, _ = await dns.asyncquery.udp_with_fallback(
                    query, server, timeout=_ATTEMPT_SECONDS, port=self._port, ignore_unexpected=True
                )
            except (OSError, EOFError, dns.exception.DNSException) as error:
                log.debug("the name server %s does not answer: %s", server, error)
                continue
            if last.rcode() != dns.rcode.SERVFAIL:
                break
        return last

    def _name_servers(self) -> list[str]:
        try:
            status = self._resolv_conf.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                found = dns.resolver.Resolver(str(self._resolv_conf)).nameservers
                self._servers = [server for server in found if isinstance(server, str)]
                self._stamp = stamp
        except (OSError, dns.exception.DNSException) as error:
            log.warning("%s names no name servers: %s", self._resolv_conf, error)
            self._servers, self._stamp = [], None
        return self._servers


def _error(query: dns.message.Message, rcode: dns.rcode.Rcode) -> bytes:
    answer = dns.message.make_response(query, recursion_available=True)
    answer.set_rcode(rcode)
    return answer.to_wire()
