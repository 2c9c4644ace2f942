"""What the tests of engines do inside the tunnel: `engine_client.py HTTP_NAME`; prints what it saw as JSON."""

import errno
import hashlib
import http.client
import json
import socket
import sys

from htcondor_vpn.testbed.services import HTTP_PORT, payload
from htcondor_vpn.testbed.services.oddities import ECHO_PORT, REFUSED_PORT, RESET_PORT

LENGTH = 30_000_000


def _ended(connection):
    """Reads to the end: how many bytes came, and whether it was an end or a reset."""
    count = 0
    try:
        while data := connection.recv(1 << 20):
            count += len(data)
    except OSError as error:
        return [count, errno.errorcode[error.errno]]
    return [count, "end"]


def _download(address):
    connection = http.client.HTTPConnection(address, HTTP_PORT, timeout=60)
    connection.request("GET", f"/bytes/{LENGTH}")
    return hashlib.sha256(connection.getresponse().read()).hexdigest()


def _upload(address):
    connection = http.client.HTTPConnection(address, HTTP_PORT, timeout=60)
    connection.request("PUT", "/upload", body=b"".join(payload.chunks(LENGTH)))
    return json.loads(connection.getresponse().read())["sha256"]


def _half_close(address):
    with socket.create_connection((address, ECHO_PORT), 20) as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        return _ended(connection)


def _reset(address):
    try:
        with socket.create_connection((address, RESET_PORT), 20) as connection:
            return _ended(connection)
    except OSError as error:  # on a busy machine it comes before `connect` has returned
        return [0, errno.errorcode[error.errno]]


def _refused(address):
    try:
        with socket.create_connection((address, REFUSED_PORT), 20):
            return "connected"
    except OSError as error:
        return errno.errorcode[error.errno]


def main():
    said = {"expected": payload.sha256(LENGTH)}
    for family, label in ((socket.AF_INET, "v4"), (socket.AF_INET6, "v6")):
        address = socket.getaddrinfo(sys.argv[1], HTTP_PORT, family, socket.SOCK_STREAM)[0][4][0]
        said[label] = {
            "download": _download(address),
            "upload": _upload(address),
            "half_close": _half_close(address),
            "reset": _reset(address),
            "refused": _refused(address),
        }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
