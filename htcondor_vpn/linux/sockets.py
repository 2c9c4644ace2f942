"""Calls on sockets that Python has no words for."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def disconnect(sock: socket.socket) -> None:
    """Cuts a TCP connection by connect(2) to AF_UNSPEC: who reads or writes `sock` sees ECONNRESET.

    Unlike shutdown(2) it cannot be taken for the far side's end. The socket stays open. Raises OSError.
    """
    address = ctypes.create_string_buffer(16)  # struct sockaddr, whose family 0 is AF_UNSPEC
    if _libc.connect(sock.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def local_ports() -> int:
    """How many connections this host can have at once to one port of one address: ip(7), ip_local_port_range."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return last - first + 1
