"""A job that moves bytes. Usage: traffic_client.py get|put BYTES [ADDRESS [FLOWS]]

Prints the seconds it took, and how many segments its network namespace has sent again since it was made.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

PORT = 7000


def move(verb: str, size: int, address: str) -> None:
    with socket.create_connection((address, PORT), timeout=30) as connection:
        connection.sendall(f"{verb} {size}\n".encode())
        if verb == "put":
            left, chunk = size, bytes(1 << 16)
            while left:
                left -= connection.send(chunk[:left])
            assert connection.recv(7) == b"thanks\n"
        else:
            left = size
            while left:
                left -= len(connection.recv(1 << 18))


def resent_segments() -> int:
    with open("/proc/self/net/snmp", encoding="ascii") as file:
        names, values = (line.split() for line in file if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


if __name__ == "__main__":
    verb, size = sys.argv[1], int(sys.argv[2])
    address = sys.argv[3] if len(sys.argv) > 3 else "198.18.0.1"
    flows = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    begin = time.monotonic()
    threads = [threading.Thread(target=move, args=(verb, size // flows, address)) for _ in range(flows)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.monotonic() - begin, resent_segments())
