from __future__ import annotations

import hashlib
import json
import socket
from contextlib import ExitStack

import dns.flags
import dns.message
import dns.rcode
import pytest
from shell_pilot import wait_until

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.services import IPERF_PORTS, WorldServices, payload, url
from htcondor_vpn.testbed.services.dns_server import BIG_BYTES
from htcondor_vpn.testbed.services.oddities import ECHO_PORT, REFUSED_PORT, RESET_AFTER_BYTES, RESET_PORT
from htcondor_vpn.testbed.site import Site

HTTP = [str(address) for address in plan.WORLD["http"]]
DNS = [str(address) for address in plan.WORLD["dns"]]


def tcp(site: Site, address: str, port: int) -> socket.socket:
    with ExitStack() as exits:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = exits.enter_context(site.dmz.socket(family, socket.SOCK_STREAM))
        sock.settimeout(60)
        sock.connect((address, port))
        exits.pop_all()
    return sock


def ask(
    site: Site, address: str, name: str, kind: str, *, by_tcp: bool = False, patience_seconds: float = 60
) -> dns.message.Message:
    wire = dns.message.make_query(f"{name}.{plan.ZONE}", kind).to_wire()
    if by_tcp:
        with tcp(site, address, 53) as sock, sock.makefile("rb") as file:
            sock.sendall(len(wire).to_bytes(2, "big") + wire)
            return dns.message.from_wire(file.read(int.from_bytes(file.read(2), "big")))
    with site.dmz.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience_seconds)
        sock.sendto(wire, (address, 53))
        return dns.message.from_wire(sock.recv(65536))


@pytest.mark.parametrize("address", HTTP)
@pytest.mark.parametrize("length", [0, 1, 65536, 1048573, 3_000_001])
def test_known_payloads(site: Site, services: WorldServices, address: str, length: int) -> None:
    where = f"http://[{address}]/bytes/{length}" if ":" in address else f"http://{address}/bytes/{length}"
    done = site.dmz.run(["sh", "-c", f"curl -gsS '{where}' | sha256sum"])
    assert done.stdout.split()[0] == payload.sha256(length)


def test_payloads_do_not_repeat_at_usual_sizes() -> None:
    whole = b"".join(payload.chunks(4 << 20))
    assert len(whole) == 4 << 20
    for size in (4096, 65536, 1 << 20):
        assert whole[:size] != whole[size : 2 * size]


@pytest.mark.parametrize("transfer", [["-T", "-"], ["--data-binary", "@-"]])
def test_uploads_are_counted(site: Site, services: WorldServices, transfer: list[str]) -> None:
    body = "0123456789" * 100_000
    name = f"up{len(transfer[0])}.any"
    done = site.dmz.run(["curl", "-sS", *transfer, url("/upload", name)], stdin=body)
    assert json.loads(done.stdout) == {"bytes": len(body), "sha256": hashlib.sha256(body.encode()).hexdigest()}
    entry = services.http_ledger.wait_for(lambda entry: str(entry["host"]).startswith(name))
    assert (entry["bytes_in"], entry["bytes_out"], entry["complete"]) == (len(body), len(done.stdout), True)


def test_the_ledger_knows_peer_and_length(site: Site, services: WorldServices) -> None:
    peer = site.dmz.run(["curl", "-4", "-sS", url("/peer", "ledger.any")]).stdout
    assert peer == str(plan.DMZ_OUTSIDE.v4)
    site.dmz.run(["curl", "-4", "-sS", "-o", "/dev/null", url("/bytes/12345", "ledger.any")])
    entry = services.http_ledger.wait_for(lambda entry: entry["path"] == "/bytes/12345")
    assert (entry["peer"], entry["bytes_out"], entry["status"]) == (peer, 12345, 200)


def test_a_broken_download_is_not_complete(site: Site, services: WorldServices) -> None:
    site.dmz.run(["sh", "-c", f"curl -sS {url('/bytes/987654321')} | head -c 1000 | wc -c"])
    entry = services.http_ledger.wait_for(lambda entry: entry["path"] == "/bytes/987654321")
    assert not entry["complete"]
    assert entry["bytes_out"] < 987654321


@pytest.mark.parametrize("by_tcp", [False, True])
@pytest.mark.parametrize("address", DNS)
def test_names(site: Site, services: WorldServices, address: str, by_tcp: bool) -> None:
    for name, pair in plan.WORLD.items():
        for kind, wanted in (("A", pair.v4), ("AAAA", pair.v6)):
            answer = ask(site, address, name, kind, by_tcp=by_tcp).answer
            assert [rrset[0].to_text() for rrset in answer] == [str(wanted)]
    assert ask(site, address, "never-seen.any", "A", by_tcp=by_tcp).answer[0][0].to_text() == HTTP[0]
    assert [rrset[0].to_text() for rrset in ask(site, address, "alias", "A", by_tcp=by_tcp).answer] == [
        f"http.{plan.ZONE}.",
        HTTP[0],
    ]
    entry = services.dns_ledger.wait_for(lambda entry: "never-seen" in entry["name"])
    assert entry["name"] == f"never-seen.any.{plan.ZONE}."


def test_what_is_not_there(site: Site, services: WorldServices) -> None:
    missing, other_kind = ask(site, DNS[0], "nobody", "A"), ask(site, DNS[0], "http", "TXT")
    assert (missing.rcode(), missing.answer) == (dns.rcode.NXDOMAIN, [])
    assert (other_kind.rcode(), other_kind.answer) == (dns.rcode.NOERROR, [])
    with pytest.raises(TimeoutError):
        ask(site, DNS[0], "silent", "A", patience_seconds=1)


def test_a_long_answer_is_truncated_on_udp_only(site: Site, services: WorldServices) -> None:
    assert ask(site, DNS[0], "big", "TXT").flags & dns.flags.TC
    answer = ask(site, DNS[0], "big", "TXT", by_tcp=True)
    assert sum(len(b"".join(record.strings)) for record in answer.answer[0]) == BIG_BYTES


@pytest.mark.parametrize("address", HTTP)
def test_far_sides_that_end_in_their_own_way(site: Site, services: WorldServices, address: str) -> None:
    with tcp(site, address, ECHO_PORT) as sock, sock.makefile("rb") as file:
        sock.sendall(b"half-closed")
        sock.shutdown(socket.SHUT_WR)
        assert file.read() == b"half-closed"
    received = bytearray()
    with tcp(site, address, RESET_PORT) as sock:
        while len(received) < RESET_AFTER_BYTES:
            received += sock.recv(65536)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert bytes(received) == b"".join(payload.chunks(RESET_AFTER_BYTES))
    with pytest.raises(ConnectionRefusedError):
        tcp(site, address, REFUSED_PORT)


@pytest.mark.parametrize("port", IPERF_PORTS)
@pytest.mark.parametrize("address", [str(address) for address in plan.WORLD["iperf"]])
def test_iperf(site: Site, services: WorldServices, address: str, port: int) -> None:
    argv = ["iperf3", "-c", address, "-p", str(port), "-n", "1M", "-J"]
    # A server that still ends the test before is busy.
    said = wait_until(lambda: "error" not in (told := json.loads(site.dmz.run(argv).stdout)) and told)
    assert said["end"]["sum_sent"]["bytes"] >= 1 << 20
