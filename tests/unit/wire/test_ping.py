"""One echo request, by a socket that is stood in for: no test needs the leave to ping."""

from __future__ import annotations

import asyncio
import socket

import pytest

from htcondor_vpn.wire.ping import ping
from htcondor_vpn.wire.unreachable import Unreachable

HERE = (socket.AF_INET, ("127.0.0.1", 0))


class Source:
    def __init__(self, sock: socket.socket | None) -> None:
        self.sock = sock

    async def open(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        assert (family, kind, protocol) == (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        if self.sock is None:
            raise PermissionError(13, "Permission denied")
        return self.sock


def test_a_host_that_may_not_says_so() -> None:
    with pytest.raises(Unreachable, match="ping_group_range") as caught:
        asyncio.run(ping(HERE, b"x", Source(None)))
    assert caught.value.status == 501


def test_only_a_reply_is_an_answer() -> None:
    async def play() -> None:
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with far, near:
            far.bind(("127.0.0.1", 0))
            far.setblocking(False)
            near.setblocking(False)
            asking = asyncio.ensure_future(ping((socket.AF_INET, far.getsockname()), b"hello", Source(near)))
            request = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, 100), 60)
            assert (request[0], request[8:]) == (8, b"hello")
            far.connect(near.getsockname())
            for answer in (b"\x08" + bytes(7) + b"no", b"short", b"\0" + bytes(7) + b"yes"):
                far.send(answer)
            assert await asyncio.wait_for(asking, 60) == b"yes"

    asyncio.run(play())
