"""Messages between processes of ours on one machine: JSON objects, with descriptors beside them (SCM_RIGHTS)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from typing import Any

#: The longest message, bytes: an engine's report of a hundred routes and gateways with why each is down. (The kernel
#: takes messages of 208 KB, net.core.wmem_default.)
MAX_BYTES = 128 * 1024
_MAX_DESCRIPTORS = 16


class Channel:
    """One end of a connected pair of SOCK_SEQPACKET sockets: a message arrives whole or not at all."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Returns the two ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict[str, Any], descriptors: Iterable[int] = ()) -> None:
        """Sends one message; raises BrokenPipeError when the other end is gone."""
        socket.send_fds(self.sock, [json.dumps(message).encode()], list(descriptors))

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Returns the next message and its descriptors (closed at exec), or None when the other end is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.sock, MAX_BYTES, _MAX_DESCRIPTORS)
        except ConnectionResetError:
            return None
        for descriptor in descriptors:  # unlike all others that Python makes, these would outlive an exec
            os.set_inheritable(descriptor, False)
        return (json.loads(data), descriptors) if data else None

    def finish(self) -> None:
        """Sends no more: the other end receives None, and can still send."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()
