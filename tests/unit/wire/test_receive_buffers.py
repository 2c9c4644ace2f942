"""Many flows bound what each may have waiting in the kernel; few do not."""

from __future__ import annotations

import mmap
import socket
from pathlib import Path

import pytest

from htcondor_vpn.wire import receive_buffers
from htcondor_vpn.wire.receive_buffers import ReceiveBuffers, share_bytes


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Of a host with 1 GiB for TCP, whose buffers can be set to 4 MiB (which is doubled)."""
    for folder in ("ipv4", "core"):
        (tmp_path / folder).mkdir()
    (tmp_path / "ipv4/tcp_mem").write_text(f"{(1 << 30) // mmap.PAGESIZE}\t2\t3\n")
    (tmp_path / "core/rmem_max").write_text(f"{4 << 20}\n")
    return tmp_path


def test_few_are_left_alone_and_many_share(settings: Path) -> None:
    assert [share_bytes(flows, settings) for flows in (0, 1, 15)] == [None] * 3
    assert share_bytes(16, settings) == 8 << 20
    assert share_bytes(256, settings) == 512 << 10
    assert share_bytes(100_000, settings) == 64 << 10


def test_where_the_kernel_shows_less(tmp_path: Path) -> None:
    assert share_bytes(1, tmp_path) is None
    assert share_bytes(100_000, tmp_path) == 64 << 10


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch, settings: Path) -> pytest.MonkeyPatch:
    monkeypatch.setattr(receive_buffers, "_sizes", lambda _: ((1 << 30), 8 << 20))
    monkeypatch.setattr(ReceiveBuffers, "live", 0)
    return monkeypatch


def test_they_follow_the_number_of_flows(crowd: pytest.MonkeyPatch) -> None:
    with socket.socket() as one, socket.socket() as other:
        sockets = one, other

        def sizes() -> list[int]:
            return [sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock in sockets]

        before = sizes()
        buffers = ReceiveBuffers(*sockets)
        buffers.open()
        buffers.fit()
        assert sizes() == before
        crowd.setattr(ReceiveBuffers, "live", 1200)
        buffers.fit()
        assert sizes() == [(1 << 30) // 8 // 2048] * 2
        crowd.setattr(ReceiveBuffers, "live", 1201)
        buffers.fit()  # not for each that comes or goes
        crowd.setattr(ReceiveBuffers, "live", 1)
        buffers.fit()
        locks = [sock.getsockopt(socket.SOL_SOCKET, receive_buffers._SO_BUF_LOCK) for sock in sockets]
        assert locks == [0, 0]  # the kernel sizes them again
        buffers.close()
        assert ReceiveBuffers.live == 0


def test_unix_sockets_are_none_of_its_business(crowd: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        before = one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        crowd.setattr(ReceiveBuffers, "live", 5000)
        ReceiveBuffers(one, other).fit()
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
