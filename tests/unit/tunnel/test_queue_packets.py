"""Which of the ways to queue packets is taken, and what is said where there is none. The kernel is stood in for."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest

from htcondor_vpn.errors import CatcherUnavailable, ProgramMissing
from htcondor_vpn.linux.programs import ProgramFailed
from htcondor_vpn.tunnel.catching import queue_rules
from htcondor_vpn.tunnel.catching.queue_rules import Queues, queue_packets


class Kernel:
    """`has` names what it has: "nfnetlink_queue", and of the programs "nft" and "iptables" those that succeed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *has: str) -> None:
        self.has, self.rules, self.made = has, dict[str, str](), list[socket.socket]()
        monkeypatch.setattr(queue_rules, "make_socket", self._make_socket)
        monkeypatch.setattr(queue_rules, "run_program", self._run)
        monkeypatch.setattr(queue_rules, "find_program", self._find)

    def _make_socket(self, *_: int) -> socket.socket:
        if "nfnetlink_queue" not in self.has:
            raise OSError(92, "Protocol not available")
        self.made.append(socket.socket())
        return self.made[-1]

    def _find(self, name: str, package: str = "") -> str:
        if "iptables" not in self.has:
            raise ProgramMissing(f"there is no `{name}` on this machine", "")
        return name

    def _run(self, argv: list[str], *, stdin: str = "", preexec: Any = None) -> str:
        if argv[0] == "nft" and "nft" not in self.has:
            raise ProgramFailed(argv, 1, "Error: Could not process rule: No such file or directory\nqueue\n")
        self.rules[argv[0]] = stdin
        return ""


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def close(queues: Queues) -> None:
    for sock in queues:
        if sock is not None:
            sock.close()


def test_nft_comes_first(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(monkeypatch, "nfnetlink_queue", "nft", "iptables")
    close(queue_packets("nft", "auto"))
    assert list(kernel.rules) == ["nft"]
    assert "connects and echo requests are held until the far side answers (nft)" in caplog.text


def test_xtables_is_taken_where_nft_cannot(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(monkeypatch, "nfnetlink_queue", "iptables")
    queues = queue_packets("nft", "on")
    assert set(queues) == set(kernel.made)
    close(queues)
    assert list(kernel.rules) == ["iptables-nft-restore", "ip6tables-nft-restore"]
    assert "(iptables)" in caplog.text


@pytest.mark.parametrize("has", [(), ("nfnetlink_queue",), ("nft", "iptables")])
def test_without_any_it_goes_on_or_is_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has: tuple[str, ...]
) -> None:
    kernel = Kernel(monkeypatch, *has)
    assert queue_packets("nft", "auto") == Queues(None, None)
    assert "a refusal is a reset" in caplog.text
    with pytest.raises(CatcherUnavailable, match="connects cannot be held"):
        queue_packets("nft", "on")
    assert all(sock.fileno() < 0 for sock in kernel.made)


def test_off_leaves_ping_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, "nfnetlink_queue", "nft")
    queues = queue_packets("nft", "off")
    assert queues == (None, *kernel.made)
    assert "syn" not in kernel.rules["nft"]
    close(queues)
