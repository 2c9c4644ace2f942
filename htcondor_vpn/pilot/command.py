"""COMMAND: started inside, as the same user, without a capability; its end is ours."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from htcondor_vpn.errors import CommandNotExecutable, CommandNotFound
from htcondor_vpn.linux.namespaces import die_with_parent, prctl
from htcondor_vpn.linux.signals import SignalDescriptor
from htcondor_vpn.pilot.inner import InnerNamespaces

_PR_SET_NO_NEW_PRIVS = 38
_FAILURE = struct.Struct("?i")  # whether the folder was to blame, errno
_REMEDY = "start it in a folder that exists and that you may enter"


class Command(NamedTuple):
    """The running COMMAND; `pidfd` becomes readable when it has ended."""

    pid: int
    pidfd: int

    def reap(self) -> int:
        """Waits for its end and returns the wait status."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        return status


def start_command(
    argv: Sequence[str],
    namespaces: InnerNamespaces,
    environment: Mapping[str, str],
    signals: SignalDescriptor,
) -> Command:
    """Starts `argv` inside, in the current folder; raises `CommandNotFound`, `CommandNotExecutable` or OSError.

    It dies when this process does. It cannot gain capabilities: entering gives them for a moment, exec takes them, and
    no_new_privs (prctl(2)) keeps programs with file capabilities from giving some back.
    """
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        raise CommandNotExecutable("the current folder does not exist any more", _REMEDY) from None
    told, tell = os.pipe()
    supervisor = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(told)
        os.close(tell)
        raise
    if pid == 0:
        _become(argv, namespaces, environment, signals, folder, supervisor, tell)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        failure = pipe.read(_FAILURE.size)
    if failure:
        os.waitpid(pid, 0)
        of_folder, number = _FAILURE.unpack(failure)
        if of_folder:
            raise CommandNotExecutable(f"the folder {folder} cannot be entered inside: {os.strerror(number)}", _REMEDY)
        if number == errno.ENOENT or (number == errno.EACCES and _is_nowhere(argv[0], environment)):
            name = argv[0] or "an empty name"
            raise CommandNotFound(f"{name} was not found", "check the path, and the interpreter in its first line")
        remedy = "begin a script with `#!/bin/sh`" if number == errno.ENOEXEC else "check its permissions"
        raise CommandNotExecutable(f"{argv[0]} cannot be executed: {os.strerror(number)}", remedy)
    return Command(pid, os.pidfd_open(pid))


def _is_nowhere(command: str, environment: Mapping[str, str]) -> bool:
    """Whether no folder of PATH has `command`: one that may not be read makes execvp(3) say EACCES instead."""
    return "/" not in command and shutil.which(command, mode=os.F_OK, path=environment.get("PATH")) is None


def _become(
    argv: Sequence[str],
    namespaces: InnerNamespaces,
    environment: Mapping[str, str],
    signals: SignalDescriptor,
    folder: str,
    supervisor: int,
    tell: int,
) -> NoReturn:
    of_folder = False
    try:
        namespaces.enter()
        of_folder = True
        os.chdir(folder)
        of_folder = False
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and exec would keep so
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)
        signals.restore()
        os.execvpe(argv[0], list(argv), dict(environment))
    except OSError as error:
        os.write(tell, _FAILURE.pack(of_folder, error.errno or errno.EIO))
    except ValueError:  # an empty name
        os.write(tell, _FAILURE.pack(False, errno.ENOENT))
    finally:
        os._exit(1)
