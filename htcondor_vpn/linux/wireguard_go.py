"""Starts an unmodified wireguard-go in this network namespace, with UDP sockets of another one.

To be called in namespaces of our own (see `tun_room`): the tun device appears here, with segmentation offload, and
what wireguard-go sends and receives passes through sockets that are made by whoever gets the listener (`seccomp`).
"""

from __future__ import annotations

import functools
import os
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.errors import NamespacesUnavailable, ProgramMissing, VpnError
from htcondor_vpn.linux.mounts import hide
from htcondor_vpn.linux.namespaces import capabilities_to_programs, die_with_parent
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.linux.seccomp import suspend_sockets

#: The first version with segmentation offload; one before makes its sockets in a way that cannot be told from others.
OLDEST = 20231211

START_SECONDS = 15.0
_LOOK_AGAIN_MS = 5
_WORDS_BYTES = 4096

#: Where wireguard-go makes its control socket, built into it.
_SOCKETS = Path("/var/run/wireguard")


#: In this process.
_started: list[subprocess.Popen[bytes]] = []


class Started(NamedTuple):
    """Descriptors of a running wireguard-go: the process, its listener, its log (a pipe), and its control socket."""

    process: int
    listener: int
    log: int
    control: int


def find(given: Path | None, knob: str) -> str:
    """Returns the path of wireguard-go: `given`, which `knob` sets, or on PATH.

    Raises `ProgramMissing`, also where it is too old.
    """
    program = find_program("wireguard-go") if given is None else str(given)
    newer = f"name one of version 0.0.{OLDEST} or newer in {knob}"
    try:
        said = run_program([program, "--version"])
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        raise ProgramMissing(f"{program} cannot be run: {error}", newer) from error
    # One that was built from a checkout may name no version: then it shows when it is used.
    version = re.search(r"v?0\.0\.(20[0-9]{6})", said)
    if version and int(version[1]) < OLDEST:
        raise ProgramMissing(f"{program} is of version {version[0]}, which is too old", newer)
    return program


@functools.cache
def _hide_sockets() -> None:
    """Makes room for the control socket in this mount namespace, where nobody else sees it, once; raises OSError."""
    run = Path(os.path.realpath(_SOCKETS.parent))
    hide(run)
    (run / _SOCKETS.name).mkdir(mode=0o700)


def start(program: str, link: str) -> Started:
    """Starts `program` with the tun device `link`; it ends with this process, whose mounts are its own.

    Raises OSError, or `VpnError` with what it said when it does not get as far as listening at its control socket.
    """
    _reap()
    _hide_sockets()
    ours, theirs = socket.socketpair()
    log, log_end = os.pipe2(os.O_CLOEXEC)
    with ours, theirs:
        ours.settimeout(START_SECONDS)

        def in_child() -> None:
            capabilities_to_programs()
            try:
                listener = suspend_sockets()
            except VpnError as error:
                theirs.send(str(error).encode())
                raise
            socket.send_fds(theirs, [b"x"], [listener])
            os.close(listener)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            die_with_parent(signal.SIGKILL)

        environment = {"PATH": os.defpath, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
        try:
            process = subprocess.Popen(
                [program, "-f", link], stdin=subprocess.DEVNULL, stdout=log_end, stderr=log_end, env=environment,
                cwd="/", preexec_fn=in_child, start_new_session=True,
            )  # fmt: skip
        except subprocess.SubprocessError as error:
            os.close(log)
            raise NamespacesUnavailable(ours.recv(_WORDS_BYTES).decode()) from error
        except BaseException:
            os.close(log)
            raise
        finally:
            os.close(log_end)
        _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    _started.append(process)
    pidfd = os.pidfd_open(process.pid)
    try:
        control = _control(program, pidfd, link, log)
    except BaseException:
        _reap()
        for descriptor in (pidfd, listener, log):
            os.close(descriptor)
        raise
    return Started(pidfd, listener, log, control.detach())


def _reap() -> None:
    """Ends those that were started here before: there is one device of a name, and one control socket."""
    while _started:
        process = _started.pop()
        process.kill()
        process.wait()


def _control(program: str, pidfd: int, link: str, log: int) -> socket.socket:
    """Connects to the control socket as soon as it is there."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + START_SECONDS
    sock = socket.socket(socket.AF_UNIX)
    while True:
        try:
            sock.connect(str(_SOCKETS / f"{link}.sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        else:
            return sock
        ended = bool(poller.poll(_LOOK_AGAIN_MS))
        if ended or time.monotonic() > deadline:
            sock.close()
            words = _last_words(log) if ended else f"it is not ready within {START_SECONDS:g} s"
            raise VpnError(f"{program} does not start: {words}", "see whether /dev/net/tun is usable (0666)")


def _last_words(log: int) -> str:
    said = os.read(log, _WORDS_BYTES).decode(errors="replace") if select.select([log], [], [], 0)[0] else ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
