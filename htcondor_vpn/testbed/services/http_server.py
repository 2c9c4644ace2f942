"""The world's HTTP server, which counts: `http_server LEDGER PORT ADDRESS...`, ready when it says so.

GET /bytes/N returns N bytes (`payload`), GET /peer the client's address, PUT and POST /upload a count and digest of the
body. Each request leaves a line in the ledger with the payload bytes each way, seen from the server, headers excluded.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from htcondor_vpn.testbed.services import payload

_READ_BYTES = 1 << 20
_IDLE_SECONDS = 600


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True
    ledger: ClassVar[Path]

    def do_GET(self) -> None:
        with self._counted():
            _, _, what = self.path.partition("/bytes/")
            if what.isdecimal():
                self._answer(HTTPStatus.OK, int(what), payload.chunks(int(what)))
            elif self.path == "/peer":
                text = self.client_address[0].encode()
                self._answer(HTTPStatus.OK, len(text), iter([memoryview(text)]))
            else:
                self._answer(HTTPStatus.NOT_FOUND, 0, iter(()))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        with self._counted():
            digest = hashlib.sha256()
            for chunk in self._body():
                self._entry["bytes_in"] += len(chunk)
                digest.update(chunk)
            text = json.dumps({"bytes": self._entry["bytes_in"], "sha256": digest.hexdigest()}).encode()
            status = HTTPStatus.OK if self.path == "/upload" else HTTPStatus.NOT_FOUND
            self._answer(status, len(text), iter([memoryview(text)]))

    do_PUT = do_POST

    def _counted(self) -> _Counted:
        self._entry: dict[str, Any] = {
            "method": self.command, "path": self.path, "peer": self.client_address[0], "host": self.headers["Host"],
            "bytes_in": 0, "bytes_out": 0, "status": None, "complete": False, "time": time.time(),
        }  # fmt: skip
        return _Counted(self._entry, self.ledger)

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            yield from self._chunked_body()
            return
        remaining = int(self.headers.get("Content-Length", 0))
        while remaining:
            chunk = self.rfile.read1(min(remaining, _READ_BYTES))
            if not chunk:
                raise ConnectionResetError("the body ended early")
            remaining -= len(chunk)
            yield chunk

    def _chunked_body(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunk = self.rfile.read(size)
            if len(chunk) < size:
                raise ConnectionResetError("the body ended early")
            yield chunk
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers say nothing that we count

    def _answer(self, status: HTTPStatus, length_bytes: int, body: Iterator[memoryview]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length_bytes))
        self.end_headers()
        self._entry["status"] = int(status)
        if self.command != "HEAD":
            for chunk in body:
                while chunk:
                    sent = self.connection.send(chunk)
                    self._entry["bytes_out"] += sent
                    chunk = chunk[sent:]

    def log_message(self, format: str, *args: Any) -> None:  # the ledger says it all
        pass


class _Counted:
    """Writes the entry when the request is over, also when the connection broke; then it is not `complete`."""

    def __init__(self, entry: dict[str, Any], ledger: Path) -> None:
        self.entry, self.ledger = entry, ledger

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.entry["complete"] = kind is None
        self.entry["seconds"] = round(time.time() - self.entry["time"], 4)
        with self.ledger.open("a") as file:
            file.write(json.dumps(self.entry) + "\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        print(f"{client_address}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)


def main() -> None:
    """Serves until it is ended by a signal."""
    _Handler.ledger = Path(sys.argv[1])
    servers = [_Server(address, int(sys.argv[2])) for address in sys.argv[3:]]
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
