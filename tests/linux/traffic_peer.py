"""The far side of a job's traffic: a client sends a line `get N` or `put N` and gets or gives N bytes.

Usage: traffic_peer.py IPV4 IPV6 PORT
"""

from __future__ import annotations

import socket
import sys
import threading

CHUNK = bytes(1 << 16)


def _serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as lines:
        verb, size = lines.readline().split()
        left = int(size)
        if verb == b"get":
            while left:
                left -= connection.send(CHUNK[:left])
        else:
            while left:
                left -= len(lines.read1(min(left, len(CHUNK))))
            connection.sendall(b"thanks\n")


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    port = int(sys.argv[3])
    listeners = [socket.create_server((sys.argv[1], port))]
    listeners.append(socket.create_server((sys.argv[2], port), family=socket.AF_INET6))
    print("listening", flush=True)
    threads = [threading.Thread(target=_accept, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
