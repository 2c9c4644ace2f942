"""Runs a command inside another program, such as cvmfsexec, and has signals reach the command all the same.

cvmfsexec puts shells and namespaces of users and processes between its caller and the command, and has them, and with
them the command, ignore signals. So a program of ours precedes the command there: it takes signals as usual again, and
sends its credentials, from which the kernel tells us its process in our own terms (unix(7), SCM_CREDENTIALS).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from htcondor_vpn.errors import CommandNotExecutable, CommandNotFound
from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.linux.signals import SignalDescriptor

FORWARDED = frozenset({
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
})  # fmt: skip

_CREDENTIALS = struct.Struct("3i")

#: Started as `python -IS -c … DESCRIPTOR COMMAND…`, behind the wrapper.
_STUB = """
import os, signal, socket, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
socket.socket(fileno=int(sys.argv[1])).send(b"x")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"htcondor-vpn: {sys.argv[2]}: {error.strerror}", file=sys.stderr)
    sys.exit(127 if isinstance(error, FileNotFoundError) else 126)
"""


def run_within(wrapper: Sequence[str], argv: Sequence[str]) -> int:
    """Runs `wrapper … argv` and returns its exit code (negative: the signal).

    Signals that we are sent reach the process of `argv`; before it exists they go to the wrapper.

    Raises `CommandNotFound` or `CommandNotExecutable`.
    """
    signals = SignalDescriptor(FORWARDED | {signal.SIGCHLD})
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with theirs:
        stub = [sys.executable, "-ISXutf8", "-c", _STUB, str(theirs.fileno())]
        process = _start([*wrapper, *stub, *argv], theirs.fileno(), signals)
    target = os.pidfd_open(process.pid)
    awaited = [signals.fileno(), ours.fileno()]
    while process.poll() is None:
        readable, _, _ = select.select(awaited, [], [])
        if ours.fileno() in readable:
            awaited.remove(ours.fileno())
            with suppress(ProcessLookupError):  # it has ended again already, and soon so will the wrapper
                announced = _announced(ours)
                os.close(target)
                target = announced
        for received in signals.read():
            if received.number in FORWARDED and not received.by_kernel:  # a terminal's keys reach all
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(target, received.number)
    os.close(target)
    ours.close()
    return process.returncode


def _start(argv: Sequence[str], keep: int, signals: SignalDescriptor) -> subprocess.Popen[bytes]:
    def in_child() -> None:
        die_with_parent(signal.SIGKILL)
        signals.restore()

    try:
        return subprocess.Popen(argv, pass_fds=[keep], preexec_fn=in_child)  # noqa: PLW1509
    except FileNotFoundError as error:
        raise CommandNotFound(f"{argv[0]} was not found", "check its path") from error
    except OSError as error:
        raise CommandNotExecutable(
            f"{argv[0]} cannot be executed: {error.strerror}", "check its permissions"
        ) from error


def _announced(sock: socket.socket) -> int:
    """A descriptor of the process that has sent the datagram which is there."""
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
    return os.pidfd_open(_CREDENTIALS.unpack(ancillary[0][2])[0])
