"""WireGuard's keys, and the control protocol of its implementations in user space."""

import asyncio
import base64
import socket
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.wire.http import ProtocolError
from htcondor_vpn.wire.wireguard import Device, Peer, PeerState, key_text, parse_key, parse_state

KEY, OTHER = bytes(range(32)), bytes([7]) * 32
ALL = (ip_network("0.0.0.0/0"), ip_network("::/0"))
PEER = Peer(KEY, ALL, preshared_key=OTHER, endpoint=(ip_address("2001:db8::1"), 51820), keepalive_seconds=25)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_read_as_it_is_written(key):
    assert parse_key(key_text(key)) == key


GOOD = key_text(KEY)


@pytest.mark.parametrize("text", ["", "x", GOOD[:-1], GOOD + "\n", GOOD[:-2] + "9=", "é" * 44])
def test_what_is_no_key(text):
    with pytest.raises(ValueError, match="is no key"):
        parse_key(text)


@given(st.binary() | st.binary().map(base64.b64encode))
def test_only_keys_are_read_as_keys(data):
    text = data.decode("latin-1")
    with suppress(ValueError):
        assert key_text(parse_key(text)) == text


@asynccontextmanager
async def device(*answers):
    """A device that gets these answers, and what it has sent."""
    ours, theirs = socket.socketpair()
    asked = []
    theirs.setblocking(False)

    async def serve():
        loop = asyncio.get_running_loop()
        for answer in answers:
            said = b""
            while not said.endswith(b"\n\n"):
                said += await loop.sock_recv(theirs, 65536)
            asked.append(said.decode())
            for byte in range(0, len(answer), 7):
                await loop.sock_sendall(theirs, answer[byte : byte + 7])
        theirs.close()

    serving = asyncio.ensure_future(serve())
    made = Device(ours)
    try:
        yield made, asked
    finally:
        serving.cancel()
        made.close()
        theirs.close()


def run(body):
    return asyncio.run(asyncio.wait_for(body, 60))


def test_what_is_asked():
    async def body():
        async with device(b"errno=0\n\n", b"errno=0\n\n", b"errno=0\n\n") as (made, asked):
            await made.configure(OTHER, [PEER], 51820)
            await made.add(Peer(KEY, (ip_network("198.18.128.2/32"),)))
            await made.remove(KEY)
        return asked

    configured, added, removed = run(body())
    assert configured.splitlines() == [
        "set=1", f"private_key={OTHER.hex()}", "listen_port=51820", "replace_peers=true", f"public_key={KEY.hex()}",
        "replace_allowed_ips=true", "allowed_ip=0.0.0.0/0", "allowed_ip=::/0", f"preshared_key={OTHER.hex()}",
        "endpoint=[2001:db8::1]:51820", "persistent_keepalive_interval=25", "",
    ]  # fmt: skip
    assert "endpoint" not in added
    assert "allowed_ip=198.18.128.2/32\n" in added
    assert removed == f"set=1\npublic_key={KEY.hex()}\nremove=true\n\n"


def test_what_is_told():
    answer = (
        f"private_key={OTHER.hex()}\nlisten_port=51820\npublic_key={KEY.hex()}\nprotocol_version=1\n"
        "last_handshake_time_sec=1795000000\nlast_handshake_time_nsec=500000000\ntx_bytes=12\nrx_bytes=34\n"
        f"allowed_ip=::/0\npublic_key={OTHER.hex()}\nerrno=0\n\n"
    ).encode()

    async def body():
        async with device(answer) as (made, _):
            return await made.peers()

    assert run(body()) == [PeerState(KEY, 1795000000.5, 34, 12), PeerState(OTHER)]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"errno=-22\n\n", OSError, "wireguard-go refuses: Invalid argument"),
        (b"errno=98\n\n", OSError, "Address already in use"),
        (b"hello\n\n", ProtocolError, "without an errno"),
        (b"errno=x\n\n", ProtocolError, "without an errno"),
        (b"public_key=xy\nerrno=0\n\n", ProtocolError, "a state that is none"),
        (b"errno=0\n", ConnectionResetError, "ended the connection"),
    ],
)
def test_what_goes_wrong_is_said(answer, error, words):
    async def body():
        async with device(answer) as (made, _):
            await made.peers()

    with pytest.raises(error, match=words):
        run(body())


@given(st.text())
def test_whatever_is_told_is_read_or_refused(text):
    with suppress(ProtocolError):
        parse_state(text)
