"""The gateway's listening sockets, and the file descriptors for what they accept."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from htcondor_vpn.errors import ListenError

log = logging.getLogger(__name__)

_BACKLOG = 1024
#: How long the workers of a gateway that was killed may take to let go of their sockets.
_BUSY_SECONDS = 1.0
#: For the loop, the database, listening sockets, name look-ups and the like.
_SPARE_DESCRIPTORS = 128
#: What a connection whose peers do not read may come to hold when there are thousands of them (`wire.relay`), bytes.
CONNECTION_BYTES = 256 * 1024


def listen(endpoints: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Returns listening sockets for `endpoints` (host, port); raises `ListenError` if any cannot be had.

    A wildcard of an IP version that this host does not have is passed over, if another endpoint remains.
    """
    with ExitStack() as stack:
        sockets = []
        missing = []
        for host, port in endpoints:
            try:
                sockets.append(stack.enter_context(_listen(host, port)))
            except socket.gaierror as error:
                cause = f"cannot listen on {host}: {error.strerror}"
                raise ListenError(cause, "give an address of this host with --listen") from error
            except OSError as error:
                if host in ("::", "0.0.0.0") and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # noqa: S104
                    missing.append(host)
                    continue
                raise _failure(host, port, error) from error
        if not sockets:
            raise ListenError("there is nowhere to listen", "set HTCONDOR_VPN_GATEWAY_LISTEN to addresses of this host")
        for host in missing:
            log.warning("this host has no addresses for %s", host)
        stack.pop_all()
        return sockets


def name_of(address: tuple[object, ...]) -> str:
    """Writes a socket address as HOST:PORT or [IPV6]:PORT."""
    host = str(address[0])
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def raise_descriptor_limit(connections: int) -> int:
    """Raises RLIMIT_NOFILE to its hard limit; returns how many of `connections` it leaves room for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return connections
    room = max(1, (hard - _SPARE_DESCRIPTORS) // 2)
    if room < connections:
        log.warning("the limit of %d file descriptors allows %d connections, not %d", hard, room, connections)
    return min(room, connections)


def within_memory(connections: int) -> int:
    """Returns how many of `connections` fit into half of this machine's, or this control group's, memory."""
    memory_bytes = _memory_bytes()
    room = max(1, memory_bytes // 2 // CONNECTION_BYTES)
    if room < connections:
        log.warning("%d MB of memory allow %d connections, not %d", memory_bytes // 10**6, room, connections)
    return min(room, connections)


def _memory_bytes() -> int:
    """What this process may use (proc(5), cgroups(7): version 2)."""
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = Path("/sys/fs/cgroup", next(line[3:] for line in lines if line.startswith("0::")).lstrip("/"))
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # without a limit it says "max", and at the top nothing
                bounds.append(int((folder / "memory.max").read_text()))
    return min(bounds)


def _listen(host: str, port: int) -> socket.socket:
    results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = results[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # So that [::] and 0.0.0.0 can both be bound, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _bind(sock, address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, address: tuple[object, ...]) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            sock.bind(address)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _failure(host: str, port: int, error: OSError) -> ListenError:
    where = name_of((host, port))
    remedy = {
        errno.EADDRINUSE: f"stop what listens there (`ss -ltnp 'sport = :{port}'`), or choose another with --listen",
        errno.EACCES: "ports below 1024 need a privilege: choose another with --listen",
        errno.EADDRNOTAVAIL: "give an address of this host with --listen",
    }.get(error.errno or 0, "choose another with --listen")
    return ListenError(f"cannot listen on {where}: {error.strerror}", remedy)
