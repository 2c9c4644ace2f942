"""Traffic of which only what arrives between two instants counts. Instants are of time.monotonic(), for all on a host.

What has arrived is the kernel's own count. So who looks late, because the machine was held up, relates what there is
then to the time that it took, and takes nothing that waited in a buffer for what came at once.

    timed_traffic.py serve ADDRESS … PORT                        the far side; prints a line when it listens
    timed_traffic.py get|put ADDRESS PORT BEGIN END [FLOWS [PARTS]]      prints the bytes that arrived in between

in each of so many equal parts of that time. All that arrives is counted where it is received. Standard library alone.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
import time

_CHUNK = bytes(1 << 18)
_TIMEOUT_SECONDS = 60.0
#: Where struct tcp_info (linux/tcp.h) has tcpi_bytes_received.
_BYTES_RECEIVED = struct.Struct("=128xQ")


def _arrived(connection: socket.socket) -> int:
    """The bytes that have arrived, read or not (tcp(7), TCP_INFO)."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    return int(_BYTES_RECEIVED.unpack(told)[0])


def _count(connection: socket.socket, begin: float, end: float, parts: int) -> list[int]:
    """Receives until `end`, or until the other side ends, and returns what arrived since `begin`, part by part."""
    buffer, part_seconds, over = bytearray(1 << 20), (end - begin) / parts, False
    edges = [begin + part_seconds * number for number in range(parts + 1)]
    seen: list[tuple[float, int]] = []
    while True:
        now = time.monotonic()
        while len(seen) <= parts and (over or now >= edges[len(seen)]):
            # A moment too early at the beginning, and too late at the end: nobody gets more than there was.
            count, later = _arrived(connection), time.monotonic()
            seen.append((edges[len(seen)] if over else now if not seen else later, count))
        if len(seen) > parts:
            break
        connection.settimeout(max(edges[len(seen)] - time.monotonic(), 1e-6))
        try:
            over = not connection.recv_into(buffer)
        except socket.timeout:
            continue
    return [
        round((after - before) / (last - first) * part_seconds) if last > first else 0
        for (first, before), (last, after) in zip(seen, seen[1:])
    ]


def _send(connection: socket.socket, end: float) -> None:
    """Sends until `end`, or until the other side wants no more."""
    while (now := time.monotonic()) < end:
        connection.settimeout(end - now)
        try:
            connection.send(_CHUNK)
        except (socket.timeout, BrokenPipeError, ConnectionResetError):
            return


def _serve(connection: socket.socket) -> None:
    with connection:
        verb, begin, end, parts = connection.makefile("rb", 0).readline().split()
        if verb == b"get":
            _send(connection, float(end))
        else:
            counts = _count(connection, float(begin), float(end), int(parts))
            connection.settimeout(_TIMEOUT_SECONDS)
            connection.sendall(f"{_line(counts)}\n".encode())
            connection.shutdown(socket.SHUT_WR)
            _drain(connection)


def _drain(connection: socket.socket) -> None:
    """Takes what is still under way: what is left unread at the close is a reset, and the answer would go with it."""
    while connection.recv(1 << 20):
        pass


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def serve(addresses: list[str], port: int) -> None:
    """Serves until it is killed."""
    threads = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=1024)
        threads.append(threading.Thread(target=_accept, args=(listener,)))
    print("listening", flush=True)
    for thread in threads:
        thread.start()


def _line(counts: list[int]) -> str:
    return " ".join(map(str, counts))


def move(verb: str, address: str, port: int, begin: float, end: float, parts: int) -> list[int]:
    """Moves what it can by one connection, and returns the bytes that arrived between `begin` and `end`, part by part.

    None where the far side cannot be reached: who waits for an answer in vain is told so, or not, by its own kernel.
    """
    try:
        connection = socket.create_connection((address, port), timeout=end - time.monotonic())
    except OSError as error:
        if not isinstance(error, socket.timeout) and error.errno != errno.EHOSTUNREACH:
            raise
        return [0] * parts
    with connection:
        connection.sendall(f"{verb} {begin} {end} {parts}\n".encode())
        if verb == "get":
            return _count(connection, begin, end, parts)
        _send(connection, end)
        connection.settimeout(_TIMEOUT_SECONDS)
        return list(map(int, connection.makefile("rb").readline().split()))


def _main() -> None:
    if sys.argv[1] == "serve":
        return serve(sys.argv[2:-1], int(sys.argv[-1]))
    verb, address, port, begin, end = sys.argv[1:6]
    flows, parts = (int(sys.argv[at]) if len(sys.argv) > at else 1 for at in (6, 7))
    counts: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: counts.append(move(verb, address, int(port), float(begin), float(end), parts)))
        for _ in range(flows)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) != len(threads):
        sys.exit(1)
    print(_line([sum(part) for part in zip(*counts)]))
    return None


if __name__ == "__main__":
    _main()
