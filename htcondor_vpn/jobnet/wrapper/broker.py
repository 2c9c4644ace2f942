"""The way to the broker (protocol.py)."""

from __future__ import annotations

import _socket
import sys
import time

from htcondor_vpn.jobnet.wrapper.text import decoded, encoded

TYPE_CHECKING = False
if TYPE_CHECKING:  # what `typing` would say, without the time that its import takes
    from collections.abc import Iterable

    Fields = Iterable[tuple[str, str]]

START_SECONDS = 20.0
RETRY_SECONDS = 0.05
LONGEST_ANSWER_BYTES = 1 << 20


class Refused(Exception):
    """The broker said no."""


class Broker:
    """A connection to the broker."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket: _socket.socket | None = None
        self.descriptors: list[int] = []

    def connect(self, seconds: float) -> None:
        """Connects, again and again while a broker is being restarted; raises OSError after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                sock.settimeout(max(seconds, RETRY_SECONDS))
                sock.connect(self.path)
                self.socket = sock
                return
            except OSError:
                sock.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)  # nothing tells when a socket's path gets a listener again

    def ask(
        self,
        verb: str,
        fields: Fields = (),
        text: str = "",
        descriptor: int | None = None,
        seconds: float = START_SECONDS,
    ) -> dict[str, str]:
        """Sends one message and returns the fields of the answer; raises `Refused` or OSError."""
        if self.socket is None:
            raise OSError("there is no connection to the broker")
        body = "".join(f"{key} {value}\n" for key, value in fields) + ("\n" + text if text else "")
        data = encoded(body)
        data = f"{verb} {len(data)}\n".encode() + data
        self.socket.settimeout(seconds)
        rights = []
        if descriptor is not None:
            packed = descriptor.to_bytes(4, sys.byteorder)
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        try:
            sent = self.socket.sendmsg([data], rights)
            while sent < len(data):
                sent += self.socket.send(data[sent:])
        except BrokenPipeError:
            pass  # a broker that refuses who asks does not wait for what; it has said why
        status, answered = self._answer(self.socket)
        answer = {}
        for line in decoded(answered).splitlines():
            key, _, answer[key] = line.partition(" ")
        if status != b"ok":
            raise Refused(answer.get("reason", "the broker gave no reason"))
        return answer

    def _answer(self, sock: _socket.socket) -> tuple[bytes, bytes]:
        received = b""
        while True:
            header, end, body = received.partition(b"\n")
            if end:
                status, _, length = header.partition(b" ")
                if len(body) >= int(length):
                    return status, body
            if len(received) > LONGEST_ANSWER_BYTES:
                raise OSError("the broker's answer is too long")
            data, control, _, _ = sock.recvmsg(65536, 256)
            if not data:
                raise OSError("the broker closed the connection")
            for _, _, rights in control:
                for at in range(0, len(rights) - 3, 4):
                    self.descriptors.append(int.from_bytes(rights[at : at + 4], sys.byteorder))
            received += data

    def close(self) -> None:
        """Closes the connection."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
