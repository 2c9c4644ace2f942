"""A gateway that has the right key, says that all is well, and then says the wrong things.

Usage: hostile_peer.py HOST PORT CERTIFICATE KEY. The port that a flow or datagrams are to go to, and the number in a
name (`q3.test`), say which answer they get. Whatever it says of itself is hostile too.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import sys
import threading

#: For a shell that should never see it.
WORDS = "$(touch /tmp/pwned)`touch /tmp/pwned`;touch /tmp/pwned|\x1b]0;pwned\x07 %s%n"
PLAIN = "$(touch /tmp/pwned)`touch /tmp/pwned`;touch /tmp/pwned|%s%n"
_QUOTED = WORDS.replace("\x1b", "\\u001b").replace("\x07", "\\u0007")

STANDING = (
    '{"version": "%s", "instance": "%s", "families": ["ipv4", "ipv6", "%s", 4, null, []], "udp": true, "flows": "%s",'
    ' "load": 1e999, "draining": "%s", "weight": -1e999, "time": [[[]]]}'
) % ((_QUOTED,) * 5)

OK = b"HTTP/1.1 200 OK\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: connect-udp\r\n\r\n"

#: What comes first, and what comes then without an end.
FLOWS = [
    (b"", b""),
    (b"\x00\xff\x80" * 100, b""),
    (b"HTTP/1.1 999999 OK\r\n\r\n", b""),
    (b"HTTP/1.1 2OO OK\r\n\r\n", b""),
    (b"HTTP/9.9 200 OK\r\n\r\n", b""),
    (b"200\r\n\r\n", b""),
    (OK + b"Content-Length: -5\r\n\r\n", b""),
    (OK + b": nothing\r\n\r\n", b""),
    (f"HTTP/1.1 403 {WORDS}\r\nProxy-Status: {WORDS}\r\n\r\n".encode(), b""),
    (f"HTTP/1.1 403 {PLAIN}\r\nProxy-Status: {PLAIN}\r\n\r\n".encode(), b""),
    (b'HTTP/1.1 502 x\r\nProxy-Status: x; error="' + b"e" * 10_000 + b'"\r\n\r\n', b""),
    (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", b"x" * 65536),
    (OK, b"X: " + b"x" * 1000 + b"\r\n"),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    (b"HTTP/1.1 500 x\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
]
DATAGRAMS = [
    *FLOWS[:11],
    (OK + b"\r\n", b""),
    (SWITCHED, b"\xff" * 65536),
    (SWITCHED + b"\x00\x80\x01\x86\xa0" + bytes(100_000), b""),  # a datagram of 100,000 bytes
    (SWITCHED + b"\x00\x00" * 1000, b""),  # without a context
    (SWITCHED + b"\x00\x01\x00" * 1000, b""),  # empty
    (SWITCHED, b"\x40\x99\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(65536)),  # another kind of capsule, without an end
    (SWITCHED, b"\x00\x40\x65\x00" + bytes(100)),  # datagrams without an end
]


def _names(query: bytes) -> list[bytes]:
    """Answers to a DNS question, as HTTP bodies."""
    ident, question = query[:2], query[12:]
    head = ident + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
    words = WORDS.encode()[:60]
    cname = bytes([len(words)]) + words + b"\x07example\x00"
    return [
        b"",
        b"x",
        bytes(70_000),
        b"\xff\xff" + query[2:],
        ident + struct.pack("!HHHHH", 0x8180, 65535, 65535, 65535, 65535),
        ident + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + b"\xc0\x0c" * 20,
        head + question + b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 60, len(cname)) + cname,
        head + question + b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + bytes([127, 0, 0, 1]),
    ]


NAMES = len(_names(bytes(12)))


def _serve(connection: socket.socket, context: ssl.SSLContext) -> None:
    try:
        with context.wrap_socket(connection, server_side=True) as stream:
            while True:
                first, more = _answer(*_request(stream))
                stream.sendall(first)
                while more:
                    stream.sendall(more)
    except (OSError, ValueError):
        return  # the other side has heard enough


def _request(stream: ssl.SSLSocket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += (got := stream.recv(65536))
        if not got:
            raise ValueError("the end")
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    while length and len(body) < int(length[1]):
        body += stream.recv(65536)
    return head.decode(), body


def _answer(head: str, body: bytes) -> tuple[bytes, bytes]:
    method, target = head.split()[:2]
    if method == "CONNECT":
        return FLOWS[int(target.rsplit(":", 1)[1]) % len(FLOWS)]
    if target.startswith("/.well-known/masque/"):
        return DATAGRAMS[int(target.split("/")[-2]) % len(DATAGRAMS)]
    if target.startswith("/dns-query"):
        number = re.search(rb"q(\d+)", body)
        content = _names(body)[int(number[1]) if number else 0]
        return OK + b"Content-Type: application/dns-message\r\n" + _length(content), b""
    return OK + _length(STANDING.encode()), b""


def _length(content: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%s" % (len(content), content)


if __name__ == "__main__":
    host, port, certificate, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server((host, int(port)))
    print("ready", flush=True)
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=_serve, args=(accepted, context), daemon=True).start()
