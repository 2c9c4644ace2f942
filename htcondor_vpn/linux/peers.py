"""Who is at the other end of a UNIX socket, by what the kernel says about it (unix(7), proc(5), pidfd_open(2))."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("=iII")


class Peer(NamedTuple):
    """The process that connected. `capabilities` are its effective ones, in its own user namespace."""

    pid: int
    uid: int
    parent_pid: int
    capabilities: int


def peer_of(connection: socket.socket) -> Peer:
    """Identifies the peer; raises ProcessLookupError when it has ended or lives in a foreign PID namespace."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    if pid <= 0:
        raise ProcessLookupError("the peer is in a PID namespace that cannot be seen from here")
    return process(pid)._replace(uid=uid)


def process(pid: int) -> Peer:
    """Describes a process as if it had connected; raises ProcessLookupError when there is none."""
    wanted = ("Uid:", "PPid:", "CapEff:")
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            lines = dict(line.split(":", 1) for line in status if line.startswith(wanted))
    except FileNotFoundError:
        raise ProcessLookupError(f"the process {pid} has ended") from None
    return Peer(pid, int(lines["Uid"].split()[1]), int(lines["PPid"]), int(lines["CapEff"], 16))


def started_at(pid: int) -> int:
    """When a process began, in clock ticks since the boot: with its number it names one process for good (proc(5)).

    Raises ProcessLookupError when there is none.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as status:
            return int(status.read().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"process {pid} has ended") from None


class Watched:
    """A process held by a pidfd, so that its number cannot come to mean another. `close` it."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    def fileno(self) -> int:
        """The descriptor; it becomes readable when the process has ended."""
        return self.descriptor

    def alive(self) -> bool:
        """Whether the process has not ended."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return not poll.poll(0)

    def kill(self) -> None:
        """Sends SIGKILL; a process that has ended already is no error."""
        try:
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Closes the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
