"""The broker's second door, for hooks that are a shell's (hook.bash): TCP on the loopback of the inner namespace.

Only what is in the pilot's own network namespace comes in here, which no job is. A message is as on the UNIX socket
(protocol.py), and says by its field `pid` whose standard input holds the job ad.
"""

from __future__ import annotations

import os
import socket

from htcondor_vpn.addresses import HOOK_PORT
from htcondor_vpn.jobnet.admission import require_same_user
from htcondor_vpn.jobnet.protocol import LONGEST_AD_BYTES, Connection, Message, ProtocolError, readable
from htcondor_vpn.linux.peers import Peer, process

VERBS = frozenset({"prepare", "update"})
_CHUNK_BYTES = 1 << 20
_LONGEST_PID = 10


def listen(backlog: int) -> socket.socket:
    """Listens in the network namespace of this process; raises OSError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", HOOK_PORT))
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


async def receive(connection: Connection) -> tuple[Peer, Message] | None:
    """Receives who asks and what, with all of the hook's standard input as the text; None at the end.

    Raises `NotAllowed`, `ProtocolError`, and OSError for a process that has ended or whose input cannot be read.
    """
    message = await connection.receive()
    if message is None:
        return None
    pid = message.fields.get("pid", "")
    if message.verb not in VERBS or not pid.isdigit() or len(pid) > _LONGEST_PID:
        raise ProtocolError(f"a hook does not send a {message.verb[:20]} message of process {pid[:20]!r}")
    peer = process(int(pid))
    require_same_user(peer)
    return peer, message._replace(text=await _standard_input(peer.pid))


async def _standard_input(pid: int) -> str:
    """Reads it to its end, also where it is too long to be kept: HTCondor's pipe must not break."""
    descriptor = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            try:
                chunk = os.read(descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                await readable(descriptor)
                continue
            if not chunk:
                return b"".join(chunks).decode("utf-8", errors="surrogateescape")
            size += len(chunk)
            if size <= LONGEST_AD_BYTES:
                chunks.append(chunk)
    finally:
        os.close(descriptor)
