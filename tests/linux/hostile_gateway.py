"""A gateway that has the right key and says the wrong things.

Usage: hostile_gateway.py HOST PORT CERTIFICATE KEY WHAT
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading

OK = b"HTTP/1.1 200 OK\r\n"
#: What it answers first, and what it goes on with until the other side ends the connection.
ANSWERS = {
    "nothing": (b"", b""),
    "garbage": (b"\x00\xff" * 100, b""),
    "another-json": (OK + b"Content-Length: 2\r\n\r\n[]", b""),
    "deep-json": (OK + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000, b""),
    "http-1.0": (b'HTTP/1.0 200 OK\r\n\r\n{"families":["ipv4"]}', b""),
    "endless-head": (OK, b"X: " + b"x" * 1000 + b"\r\n"),
    "endless-body": (OK + b"Content-Length: 99999999999\r\n\r\n", b"x" * 65536),
    "endless-100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}


def _serve(connection: socket.socket, context: ssl.SSLContext, what: str) -> None:
    first, more = ANSWERS[what]
    try:
        with context.wrap_socket(connection, server_side=True) as stream:
            stream.recv(65536)
            stream.sendall(first)
            if what == "http-1.0":
                stream.unwrap()
                return
            while more:
                stream.sendall(more)
            while stream.recv(65536):
                pass
    except OSError:
        return  # the other side has heard enough


if __name__ == "__main__":
    host, port, certificate, key, what = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server((host, int(port)))
    print("ready", flush=True)
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=_serve, args=(accepted, context, what), daemon=True).start()
