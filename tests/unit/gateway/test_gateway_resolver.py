"""DNS over HTTPS: a real name server on loopback, real messages."""

import asyncio
import base64
import socket
import struct

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import pytest

from htcondor_vpn.gateway.serving.resolver import MEDIA_TYPE, Resolver


class NameServer(asyncio.DatagramProtocol):
    """Answers A queries with 192.0.2.7; `large.test` only by TCP, `broken.test` with SERVFAIL, `silent.test` never."""

    def __init__(self):
        self.ids = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        answer = self.answer(data, by_tcp=False)
        if answer:
            self.transport.sendto(answer, address)

    def answer(self, data, by_tcp):
        query = dns.message.from_wire(data)
        self.ids.append(query.id)
        name = query.question[0].name.to_text()
        answer = dns.message.make_response(query)
        if name == "silent.test.":
            return None
        if name == "broken.test.":
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name == "large.test." and not by_tcp:
            answer.flags |= dns.flags.TC
        else:
            count = 200 if name == "large.test." else 1
            addresses = [f"192.0.2.{number}" for number in range(7, 7 + count)]
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", *addresses))
        return answer.to_wire(max_size=65535)

    async def serve_tcp(self, reader, writer):
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        answer = self.answer(await reader.readexactly(length), by_tcp=True)
        writer.write(struct.pack("!H", len(answer)) + answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


class ServedNames:
    """A name server on a free port, and a resolver that asks it."""

    def __init__(self, tmp_path, nameservers="nameserver 127.0.0.1\n"):
        self.conf = tmp_path / "resolv.conf"
        self.conf.write_text(nameservers)

    async def __aenter__(self):
        self.server = NameServer()
        self.tcp = await asyncio.start_server(self.server.serve_tcp, "127.0.0.1", 0)
        port = self.tcp.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self.server, ("127.0.0.1", port))
        self.resolver = Resolver(self.conf, port)
        return self

    async def __aexit__(self, *_):
        self.transport.close()
        self.tcp.close()
        await self.tcp.wait_closed()

    async def ask(self, name, **options):
        query = dns.message.make_query(name, "A", id=0, **options)
        return dns.message.from_wire(await self.resolver.answer(query.to_wire()))


async def test_an_answer(tmp_path):
    async with ServedNames(tmp_path) as names:
        answer = await names.ask("some.test")
        assert answer.id == 0
        assert answer.answer[0].to_text() == "some.test. 60 IN A 192.0.2.7"
        await names.ask("some.test")
        assert len(set(names.server.ids)) == 2, "ids that can be guessed"


async def test_a_large_answer_comes_by_tcp(tmp_path):
    async with ServedNames(tmp_path) as names:
        answer = await names.ask("large.test")
        assert len(answer.answer[0]) == 200
        assert not answer.flags & dns.flags.TC


async def test_a_broken_or_silent_server(tmp_path, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.serving.resolver._ATTEMPT_SECONDS", 0.2)
    async with ServedNames(tmp_path) as names:
        assert (await names.ask("broken.test")).rcode() == dns.rcode.SERVFAIL
        assert (await names.ask("silent.test")).rcode() == dns.rcode.SERVFAIL


async def test_the_next_server_and_the_total_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr("htcondor_vpn.gateway.serving.resolver._ATTEMPT_SECONDS", 3.0)
    async with ServedNames(tmp_path, "nameserver 127.0.0.8\nnameserver 127.0.0.1\n") as names:
        assert (await names.ask("some.test")).answer
        monkeypatch.setattr("htcondor_vpn.gateway.serving.resolver._TOTAL_SECONDS", 0.1)
        assert (await names.ask("silent.test")).rcode() == dns.rcode.SERVFAIL


async def test_a_pilot_that_asks_without_end_delays_nobody_else(tmp_path):
    """What nobody answers takes four seconds."""
    silence, known = (dns.message.make_query(name, "A").to_wire() for name in ("silent.test", "some.test"))
    async with ServedNames(tmp_path) as names:
        flood = [asyncio.ensure_future(names.resolver.answer(silence, "flood")) for _ in range(600)]
        await asyncio.sleep(0)
        answer = await asyncio.wait_for(names.resolver.answer(known, "other"), 3)
        assert dns.message.from_wire(answer).answer
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def test_resolv_conf_is_read_again(tmp_path):
    async with ServedNames(tmp_path, "# none\n") as names:
        assert (await names.ask("some.test")).rcode() == dns.rcode.SERVFAIL
        names.conf.write_text("nameserver 127.0.0.1\n")
        assert (await names.ask("some.test")).answer
        names.conf.unlink()
        assert (await names.ask("some.test")).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize(
    ("query", "rcode"),
    [
        (dns.message.make_query("a.test", "AXFR"), dns.rcode.REFUSED),
        (dns.message.make_query("a.test", "IXFR"), dns.rcode.REFUSED),
        (dns.message.Message(id=7), dns.rcode.FORMERR),
    ],
)
async def test_queries_that_are_not_passed_on(tmp_path, query, rcode):
    async with ServedNames(tmp_path) as names:
        answer = dns.message.from_wire(await names.resolver.answer(query.to_wire()))
        assert (answer.rcode(), answer.id) == (rcode, query.id)
        assert names.server.ids == []


async def test_an_update_is_not_passed_on(tmp_path):
    update = dns.message.make_query("a.test", "SOA")
    update.set_opcode(dns.opcode.NOTIFY)
    async with ServedNames(tmp_path) as names:
        answer = dns.message.from_wire(await names.resolver.answer(update.to_wire()))
        assert answer.rcode() == dns.rcode.NOTIMP
        assert names.server.ids == []


@pytest.mark.parametrize("rubbish", [b"", b"x", b"\0" * 11, b"\xff" * 300, bytes(range(256))])
async def test_rubbish(tmp_path, rubbish):
    async with ServedNames(tmp_path) as names:
        with pytest.raises(ValueError, match="DNS"):
            await names.resolver.answer(rubbish)


async def test_over_https(running, tmp_path):
    async with ServedNames(tmp_path) as names, running(resolver=names.resolver) as gateway:
        query = dns.message.make_query("some.test", "A", id=0).to_wire()
        client = await gateway.client()
        answer = await gateway.ask(client, "POST", "/dns-query", query, [("Content-Type", MEDIA_TYPE)])
        assert (answer.status, answer.headers["content-type"]) == (200, MEDIA_TYPE)
        assert dns.message.from_wire(answer.body).answer
        text = base64.urlsafe_b64encode(query).decode().rstrip("=")
        answer = await gateway.ask(client, "GET", f"/dns-query?dns={text}")
        assert dns.message.from_wire(answer.body).answer
        for target in ("/dns-query", "/dns-query?dns=", "/dns-query?dns=a", "/dns-query?dns=%00%01"):
            assert (await gateway.ask(client, "GET", target)).status == 400
        assert (await gateway.ask(client, "POST", "/dns-query", b"x", [("Content-Type", MEDIA_TYPE)])).status == 400
        assert (await gateway.ask(client, "POST", "/dns-query", query)).status == 415
        client = await gateway.client()
        answer = await gateway.ask(client, "POST", "/dns-query", b"x" * 5000, [("Content-Type", MEDIA_TYPE)])
        assert answer.status == 413
        assert names.server.ids


async def test_many_queries_at_once(tmp_path, monkeypatch):
    """So many that the server's socket drops some, which are asked again."""
    monkeypatch.setattr("htcondor_vpn.gateway.serving.resolver._ATTEMPT_SECONDS", 3.0)
    monkeypatch.setattr("htcondor_vpn.gateway.serving.resolver._TOTAL_SECONDS", 60.0)
    async with ServedNames(tmp_path) as names:
        answers = await asyncio.gather(*(names.ask(f"n{number}.test") for number in range(400)))
        assert all(answer.answer for answer in answers)
        assert {answer.question[0].name.to_text() for answer in answers} == {f"n{n}.test." for n in range(400)}


async def test_answers_from_elsewhere_are_ignored(tmp_path):
    """Someone who only knows the port and not the id gets nowhere."""
    query = dns.message.make_query("some.test", "A", id=0)
    async with ServedNames(tmp_path) as names:
        real = names.server.datagram_received

        def forging(data, address):
            forged = dns.message.make_response(dns.message.from_wire(data))
            forged.answer.append(dns.rrset.from_text("some.test.", 60, "IN", "A", "192.0.2.66"))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
                elsewhere.sendto(forged.to_wire(), address)
            forged.id ^= 1
            names.transport.sendto(forged.to_wire(), address)
            real(data, address)

        names.server.datagram_received = forging
        answer = dns.message.from_wire(await names.resolver.answer(query.to_wire()))
        assert answer.rcode() == dns.rcode.SERVFAIL or "192.0.2.66" not in answer.to_text()
