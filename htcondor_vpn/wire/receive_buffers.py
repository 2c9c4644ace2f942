"""How much of each flow may wait in the kernel to be read, where there are many flows.

What the kernel lets one connection have (tcp_rmem) is meant for few. Hundreds that come faster than they can be passed
on fill all the memory that it has for TCP (tcp_mem, tcp(7)). Then it drops what arrives and closes windows, and some
flows starve for seconds while others go on: so each gets its part of a bounded sum.
"""

from __future__ import annotations

import functools
import mmap
import os
import socket
from contextlib import suppress
from pathlib import Path

_SETTINGS = Path("/proc/sys/net")
#: The share of TCP's memory, below which it is under no pressure, that the flows of one process may have waiting.
_PART = 8
_LEAST_BYTES = 64 * 1024
_USUAL_MOST = 212_992

_SO_BUF_LOCK = 72  # asm-generic/socket.h, since Linux 5.14
_AUTOMATIC = 0


@functools.cache
def _sizes(settings: Path = _SETTINGS) -> tuple[int, int]:
    """The memory of TCP, and the most that a buffer can be set to, both in bytes."""
    try:
        pages = int((settings / "ipv4/tcp_mem").read_text().split()[0])
    except OSError:  # it is seen in the first network namespace only: then as tcp_init() of the kernel computes it
        pages = os.sysconf("SC_PHYS_PAGES") * 3 // 64
    try:
        most = int((settings / "core/rmem_max").read_text())
    except OSError:  # older kernels show it there only, too
        most = _USUAL_MOST
    return pages * mmap.PAGESIZE, 2 * most


def share_bytes(flows: int, settings: Path = _SETTINGS) -> int | None:
    """What each of so many flows may have waiting; None leaves it to the kernel, as there are few of them."""
    memory, most = _sizes(settings)
    share = max(_LEAST_BYTES, memory // _PART // max(1, flows))
    return share if share <= most else None


class ReceiveBuffers:
    """Those of the two `sockets` of one flow, from `open` to `close`; all flows of the process are counted."""

    #: The flows that there are.
    live = 0

    def __init__(self, *sockets: socket.socket) -> None:
        self._sockets = [sock for sock in sockets if sock.family != socket.AF_UNIX]
        self._crowd = 0  # how many flows there were when they were made to fit, as a power of two

    def open(self) -> None:
        """Counts the flow."""
        ReceiveBuffers.live += 1

    def close(self) -> None:
        """Counts it off."""
        ReceiveBuffers.live -= 1

    def fit(self) -> None:
        """To be called before each read: gives them their part if the number of flows has changed much."""
        crowd = ReceiveBuffers.live.bit_length()
        if crowd == self._crowd:
            return
        before, now = (share_bytes(1 << each) for each in (self._crowd, crowd))
        self._crowd = crowd
        if now != before:
            for sock in self._sockets:
                _bound(sock, now)


def _bound(sock: socket.socket, share: int | None) -> None:
    """Gives it `share` bytes, in which the kernel's own overhead is included, or what the kernel thinks right."""
    if share is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, share // 2)  # it is doubled, socket(7)
    else:
        with suppress(OSError):  # on older kernels it stays as it is
            sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, _AUTOMATIC)
