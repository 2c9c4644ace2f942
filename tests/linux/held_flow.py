"""Holds a connection to an echo service: `held_flow.py ADDRESS PORT`. Says `open`, and after a line on standard input
what came back of two words, one sent before it and one after."""

import socket
import sys

with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as connection:
    connection.sendall(b"before ")
    print("open", flush=True)
    sys.stdin.readline()
    try:
        connection.sendall(b"after")
        connection.shutdown(socket.SHUT_WR)
        said = b""
        while data := connection.recv(100):
            said += data
        print(said.decode(), flush=True)
    except OSError as error:
        print(repr(error), flush=True)
