"""The world's DNS server, UDP and TCP: `dns_server LEDGER PORT ADDRESS...`, ready when it says so.

It alone knows the zone of the site (`plan.ZONE`): the names of `plan.WORLD`; every name below `any`, which nobody can
have in a cache; `alias`, a CNAME; `big`, a text too long for a datagram; and `silent`, which is never answered. Besides
it knows the pool's name. Each query leaves a line in the ledger.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import dns.rrset

from htcondor_vpn.testbed import plan

#: What a datagram may hold (DNS flag day 2020); BIG_BYTES is more.
_DATAGRAM_BYTES = 1232
BIG_BYTES = 4000

_ZONE = dns.name.from_text(plan.ZONE)
_ANY = dns.name.from_text("any", _ZONE)
_SILENT = dns.name.from_text("silent", _ZONE)
_TTL_SECONDS = 5

Records = dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset]


def _records() -> Records:
    records: Records = {}

    def add(name: dns.name.Name, kind: str, *values: str) -> None:
        rrset = dns.rrset.from_text(name, _TTL_SECONDS, "IN", kind, *values)
        records[name, rrset.rdtype] = rrset

    for label, pair in plan.WORLD.items():
        name = dns.name.from_text(label, _ZONE)
        add(name, "A", str(pair.v4))
        add(name, "AAAA", str(pair.v6))
        for address in pair:
            add(dns.reversename.from_address(str(address)), "PTR", name.to_text())
    add(dns.name.from_text("alias", _ZONE), "CNAME", f"http.{plan.ZONE}.")
    add(dns.name.from_text("big", _ZONE), "TXT", *(f'"{index:04d}{"x" * 196}"' for index in range(BIG_BYTES // 200)))
    # The collector listens at this address alone.
    add(dns.name.from_text(plan.POOL_NAME), "A", str(plan.WORLD["cm"].v4))
    add(_ZONE, "SOA", f"dns.{plan.ZONE}. nobody.{plan.ZONE}. 1 3600 600 86400 5")
    add(_ZONE, "NS", f"dns.{plan.ZONE}.")
    return records


_RECORDS = _records()


def _find(name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.rrset.RRset | None:
    if name.is_subdomain(_ANY) and name != _ANY:
        found = _RECORDS.get((dns.name.from_text("http", _ZONE), kind))
        if found is not None:
            found = dns.rrset.from_rdata_list(name, found.ttl, list(found))
        return found
    return _RECORDS.get((name, kind))


def answer(query: dns.message.Message, limit_bytes: int) -> bytes | None:
    """Returns the answer in at most `limit_bytes`, truncated (TC) if it is longer; None for what is not answered."""
    response = dns.message.make_response(query, recursion_available=True)
    if len(query.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
        return response.to_wire()
    question = query.question[0]
    name, kind = question.name, question.rdtype
    if name == _SILENT:
        return None
    response.flags |= dns.flags.AA
    alias = _find(name, dns.rdatatype.CNAME)
    if alias is not None and kind != dns.rdatatype.CNAME:
        response.answer.append(alias)
        name = alias[0].target
    found = _find(name, kind)
    if found is not None:
        response.answer.append(found)
    else:
        if name.is_subdomain(_ZONE):
            response.authority.append(_RECORDS[_ZONE, dns.rdatatype.SOA])
        if not name.is_subdomain(_ANY) and all(known != name for known, _ in _RECORDS):
            response.set_rcode(dns.rcode.NXDOMAIN)  # the root of this small world is ours, too
    try:
        return response.to_wire(max_size=limit_bytes)
    except dns.exception.TooBig:
        short = dns.message.make_response(query, recursion_available=True)
        short.flags |= dns.flags.TC
        return short.to_wire()


class _Server:
    """What the two transports share: the ledger, and how a query becomes an answer."""

    ledger: Path

    def reply(self, wire: bytes, peer: str, transport: str) -> bytes | None:
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException as error:
            print(f"{peer}: {error!r}", file=sys.stderr, flush=True)
            return None
        for question in query.question:
            kind = dns.rdatatype.to_text(question.rdtype)
            entry = {"name": question.name.to_text(), "type": kind, "peer": peer, "transport": transport}
            with self.ledger.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if transport == "tcp":
            return answer(query, 65535)
        return answer(query, min(max(512, query.payload if query.edns >= 0 else 0), _DATAGRAM_BYTES))


class _Datagrams(_Server, socketserver.UDPServer):
    pass


class _Streams(_Server, socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class _DatagramHandler(socketserver.BaseRequestHandler):
    server: _Datagrams

    def handle(self) -> None:
        wire, sock = self.request
        reply = self.server.reply(wire, self.client_address[0], "udp")
        if reply is not None:
            sock.sendto(reply, self.client_address)


class _StreamHandler(socketserver.StreamRequestHandler):
    server: _Streams

    def handle(self) -> None:
        while len(head := self.rfile.read(2)) == 2:
            reply = self.server.reply(self.rfile.read(int.from_bytes(head, "big")), self.client_address[0], "tcp")
            if reply is not None:
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)


def _serve(base: type[Any], handler: type[Any], address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = type(base.__name__, (base,), {"address_family": family})((address, port), handler)
    threading.Thread(target=server.serve_forever).start()


def main() -> None:
    """Serves until it is ended by a signal."""
    _Server.ledger = Path(sys.argv[1])
    for address in sys.argv[3:]:
        _serve(_Datagrams, _DatagramHandler, address, int(sys.argv[2]))
        _serve(_Streams, _StreamHandler, address, int(sys.argv[2]))
    print("ready", flush=True)


if __name__ == "__main__":
    main()
