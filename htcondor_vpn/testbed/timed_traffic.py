"""Traffic of which only what arrives between two instants counts. Instants are of time.monotonic(), for all on a host.

    timed_traffic.py serve ADDRESS … PORT                        the far side; prints a line when it listens
    timed_traffic.py get|put ADDRESS PORT BEGIN END [FLOWS]      prints the bytes that arrived in between

All that arrives is counted where it is received. Standard library alone.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time

_CHUNK = bytes(1 << 18)
_TIMEOUT_SECONDS = 60.0


def _count(connection: socket.socket, begin: float, end: float) -> int:
    """Receives until `end`, or until the other side ends, and returns what arrived since `begin`."""
    buffer, count = bytearray(1 << 20), 0
    while (now := time.monotonic()) < end:
        connection.settimeout(end - now)
        try:
            received = connection.recv_into(buffer)
        except socket.timeout:
            break
        if not received:
            break
        if begin <= time.monotonic() < end:
            count += received
    return count


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
        verb, begin, end = connection.makefile("rb", 0).readline().split()
        if verb == b"get":
            _send(connection, float(end))
        else:
            count = _count(connection, float(begin), float(end))
            connection.settimeout(_TIMEOUT_SECONDS)
            connection.sendall(b"%d\n" % count)


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


def move(verb: str, address: str, port: int, begin: float, end: float) -> int:
    """Moves what it can by one connection, and returns the bytes that arrived between `begin` and `end`.

    None where the far side cannot be reached: who waits for an answer in vain is told so, or not, by its own kernel.
    """
    try:
        connection = socket.create_connection((address, port), timeout=end - time.monotonic())
    except OSError as error:
        if not isinstance(error, socket.timeout) and error.errno != errno.EHOSTUNREACH:
            raise
        return 0
    with connection:
        connection.sendall(f"{verb} {begin} {end}\n".encode())
        if verb == "get":
            return _count(connection, begin, end)
        _send(connection, end)
        connection.settimeout(_TIMEOUT_SECONDS)
        return int(connection.makefile("rb").readline())


def _main() -> None:
    if sys.argv[1] == "serve":
        return serve(sys.argv[2:-1], int(sys.argv[-1]))
    verb, address, port, begin, end = sys.argv[1:6]
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(move(verb, address, int(port), float(begin), float(end))))
        for _ in range(int(sys.argv[6]) if len(sys.argv) > 6 else 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) != len(threads):
        sys.exit(1)
    print(sum(counts))
    return None


if __name__ == "__main__":
    _main()
