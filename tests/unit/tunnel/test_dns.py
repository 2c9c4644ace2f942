"""The resolver inside: what it answers by itself when an answer is too long, or does not come."""

import asyncio
import contextlib
import socket

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.tunnel.catching import dns as resolver
from htcondor_vpn.tunnel.catching.dns import DnsResponder, failed, truncated, udp_limit


@pytest.mark.parametrize(
    ("query", "limit"),
    [
        (dns.message.make_query("a.example", "A"), 512),
        (dns.message.make_query("a.example", "A", use_edns=0, payload=4096), 4096),
        (dns.message.make_query("a.example", "A", use_edns=0, payload=100), 512),
    ],
)
def test_limit_of_an_answer_by_datagram(query, limit):
    assert udp_limit(query.to_wire()) == limit


@given(st.binary(min_size=12, max_size=600))
def test_anything_may_be_asked(query):
    assert udp_limit(query) >= 512
    assert failed(query)[:2] == query[:2]
    assert truncated(query, query)[:2] == query[:2]


def test_failed_is_a_whole_answer():
    query = dns.message.make_query("no.example", "AAAA")
    answer = dns.message.from_wire(failed(query.to_wire()))
    assert query.is_response(answer)
    assert answer.rcode() == dns.rcode.SERVFAIL


def _long_answer(query):
    answer = dns.message.make_response(query)
    answer.answer.append(dns.rrset.from_text("long.example.", 60, "IN", "TXT", *[f"{n}" * 200 for n in range(8)]))
    return answer


def test_truncated_asks_to_come_by_tcp():
    query = dns.message.make_query("long.example", "TXT")
    answer = dns.message.from_wire(truncated(query.to_wire(), _long_answer(query).to_wire(max_size=65535)))
    assert query.is_response(answer)
    assert answer.flags & dns.flags.TC
    assert not answer.answer


def _ask(exchange, query, *, by_tcp):
    """What a responder over `exchange` answers to `query` on a loopback socket."""

    async def body():
        loop = asyncio.get_running_loop()
        responder = DnsResponder(exchange)
        if by_tcp:
            ours, theirs = socket.socketpair()
            responder.serve_stream(theirs)
            reader, writer = await asyncio.open_connection(sock=ours)
            wire = query.to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            writer.close()
            await writer.wait_closed()
            while responder._tasks:
                await asyncio.gather(*responder._tasks)
            return answer
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        ):
            theirs.bind(("127.0.0.1", 0))
            ours.setblocking(False)
            ours.connect(theirs.getsockname())
            responder.serve_datagrams(theirs)
            ours.send(query.to_wire())
            answer = await loop.sock_recv(ours, 65535)
            loop.remove_reader(theirs)
            return answer

    return dns.message.from_wire(asyncio.run(asyncio.wait_for(body(), 60)))


def test_long_answers_come_whole_by_tcp_and_truncated_by_datagram():
    query = dns.message.make_query("long.example", "TXT")

    async def exchange(wire):
        return _long_answer(dns.message.from_wire(wire)).to_wire(max_size=65535)

    assert _ask(exchange, query, by_tcp=True).answer
    by_datagram = _ask(exchange, query, by_tcp=False)
    assert by_datagram.flags & dns.flags.TC
    assert not by_datagram.answer


@pytest.mark.parametrize("by_tcp", [True, False])
def test_a_tunnel_that_is_down_is_servfail(by_tcp):
    query = dns.message.make_query("a.example", "A")

    async def exchange(wire):
        raise ConnectionResetError("the tunnel is down")

    assert _ask(exchange, query, by_tcp=by_tcp).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize("by_tcp", [True, False])
@pytest.mark.parametrize("size", [0, 11, 65536])
def test_an_answer_that_can_be_none_is_servfail(by_tcp, size):
    async def exchange(wire):
        return bytes(size)

    query = dns.message.make_query("a.example", "A")
    assert _ask(exchange, query, by_tcp=by_tcp).rcode() == dns.rcode.SERVFAIL


def test_a_gateway_that_never_answers_is_servfail(monkeypatch):
    monkeypatch.setattr("htcondor_vpn.tunnel.catching.dns._ANSWER_SECONDS", 0.05)

    async def exchange(wire):
        await asyncio.Event().wait()

    query = dns.message.make_query("a.example", "A")
    assert _ask(exchange, query, by_tcp=False).rcode() == dns.rcode.SERVFAIL


@contextlib.contextmanager
def _bound_to(address, kind=socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((address, 0))
        yield sock


async def _never(_wire):
    await asyncio.Event().wait()


def test_who_floods_the_resolver_delays_nothing_else():
    """The loop comes to others after a part of what waits."""

    async def body():
        loop = asyncio.get_running_loop()
        with _bound_to("127.0.0.1") as theirs, _bound_to("127.0.0.1") as ours:
            for _ in range(2 * resolver._TAKEN_AT_ONCE):
                ours.sendto(bytes(12), theirs.getsockname())
            DnsResponder(_never).serve_datagrams(theirs)
            turn = loop.create_future()
            loop.call_later(0, turn.set_result, None)
            await turn
            assert theirs.recv(100) == bytes(12)  # not taken yet
            loop.remove_reader(theirs)

    asyncio.run(asyncio.wait_for(body(), 60))


def test_who_floods_the_resolver_leaves_room_for_others(monkeypatch):
    """By datagrams: all that the flood may have is unanswered, and another one is answered."""
    monkeypatch.setattr(resolver, "_MAX_PENDING", 8)
    query = dns.message.make_query("a.example", "A").to_wire()

    async def exchange(wire):
        return wire if wire == query else await _never(wire)

    async def body():
        loop = asyncio.get_running_loop()
        with _bound_to("127.0.0.1") as theirs, _bound_to("127.0.0.2") as flood, _bound_to("127.0.0.3") as ours:
            DnsResponder(exchange).serve_datagrams(theirs)
            for _ in range(32):
                flood.sendto(bytes(12), theirs.getsockname())
            ours.setblocking(False)
            ours.sendto(query, theirs.getsockname())
            assert await loop.sock_recv(ours, 65535) == query
            loop.remove_reader(theirs)

    asyncio.run(asyncio.wait_for(body(), 60))


def test_hundreds_of_names_at_once_wait_for_a_gateway_that_is_held_up():
    """IPv4 and IPv6 of 300; one that was dropped would be asked again after five seconds."""

    async def body():
        responder = DnsResponder(_never)
        with _bound_to("127.0.0.1") as theirs, _bound_to("127.0.0.2") as ours:
            responder.serve_datagrams(theirs)
            for sent in range(50, 601, 50):
                for _ in range(50):
                    ours.sendto(bytes(12), theirs.getsockname())
                while len(responder._tasks) < sent:
                    await asyncio.sleep(0)
            asyncio.get_running_loop().remove_reader(theirs)

    asyncio.run(asyncio.wait_for(body(), 30))


def test_who_opens_streams_without_end_leaves_room_for_others(monkeypatch):
    """So the engine keeps descriptors for flows, too."""
    monkeypatch.setattr(resolver, "_MAX_STREAMS", 8)
    query = dns.message.make_query("a.example", "A").to_wire()

    async def exchange(wire):
        return wire

    async def body():
        loop = asyncio.get_running_loop()
        responder = DnsResponder(exchange)
        with contextlib.ExitStack() as exits:
            listener = exits.enter_context(socket.create_server(("127.0.0.1", 0)))

            def connect(source):
                sock = exits.enter_context(_bound_to(source, socket.SOCK_STREAM))
                sock.connect(listener.getsockname())
                responder.serve_stream(listener.accept()[0])
                sock.setblocking(False)
                return sock

            flood = [connect("127.0.0.2") for _ in range(8)]
            assert await loop.sock_recv(flood[-1], 1) == b""
            ours = connect("127.0.0.3")
            await loop.sock_sendall(ours, len(query).to_bytes(2, "big") + query)
            assert await loop.sock_recv(ours, 65535)
            for sock in (*flood, ours):
                sock.close()
            while responder._tasks:
                await asyncio.wait(responder._tasks)

    asyncio.run(asyncio.wait_for(body(), 60))


def test_nobody_waits_behind_the_questions_of_who_floods():
    """More of them than are asked at once, and none is answered."""
    query = dns.message.make_query("a.example", "A").to_wire()

    async def exchange(wire):
        return wire if wire == query else await _never(wire)

    async def body():
        loop = asyncio.get_running_loop()
        with _bound_to("127.0.0.1") as theirs, _bound_to("127.0.0.2") as flood, _bound_to("127.0.0.3") as ours:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            responder = DnsResponder(exchange)
            responder.serve_datagrams(theirs)
            while len(responder._tasks) < 2 * resolver._AT_ONCE:
                flood.sendto(bytes(12), theirs.getsockname())
                await asyncio.sleep(0)
            ours.setblocking(False)
            ours.sendto(query, theirs.getsockname())
            assert await asyncio.wait_for(loop.sock_recv(ours, 65535), resolver._ANSWER_SECONDS / 2) == query
            loop.remove_reader(theirs)

    asyncio.run(asyncio.wait_for(body(), 60))
