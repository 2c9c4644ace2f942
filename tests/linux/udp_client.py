"""Sends datagrams to echo services and says what came back. Usage: udp_client.py ADDRESS,PORT,BYTES,COUNT…

All are sent from one unconnected socket a family, so that it is seen where an answer comes from. Prints one line for
each: `ok`, or what went wrong.
"""

from __future__ import annotations

import os
import socket
import sys

TIMEOUT_SECONDS = 20.0

if __name__ == "__main__":
    sockets = {family: socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)}
    for argument in sys.argv[1:]:
        address, port, size, count = argument.split(",")
        sock = sockets[socket.AF_INET6 if ":" in address else socket.AF_INET]
        sock.settimeout(TIMEOUT_SECONDS)
        wrong = ""
        for _ in range(int(count)):
            payload = os.urandom(int(size))
            sock.sendto(payload, (address, int(port)))
            try:
                answer, source = sock.recvfrom(65536)
            except OSError as error:
                wrong = repr(error)
                break
            if source[:2] != (address, int(port)) or answer != payload:
                wrong = f"{len(answer)} bytes from {source}"
                break
        print(wrong or "ok", flush=True)
