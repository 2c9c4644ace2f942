"""One unprivileged sandbox for a whole simulated site: user, network, mount and PID namespaces of its own.

A command is executed inside as that user namespace's root, which is the caller's ordinary account outside: it can make
network namespaces, links and mounts there and has no power anywhere else. Three processes stand between:

    caller (waits, forwards signals) > keeper (owns the user namespace) > init (PID 1 inside, reaps) > command

The keeper dies with the caller and init with the keeper (PR_SET_PDEATHSIG); when init is gone the kernel kills every
process inside, and with them go the network namespaces, the mounts and all files in /run, TMPDIR among them, and in
/dev/shm.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

import htcondor_vpn
from htcondor_vpn.errors import AccountUnusable, CommandNotExecutable, CommandNotFound, UsageError, VpnError, by_name
from htcondor_vpn.linux import namespaces
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.mounts import keep_mounts_to_ourselves, mount
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.linux.signals import SignalDescriptor
from htcondor_vpn.testbed import account as accounts

#: Inside: which user namespace this is, so that a stray variable convinces nobody.
MARK = "HTCONDOR_VPN_SANDBOX"

#: Inside: the folder for temporary files; it vanishes with the sandbox.
TEMPORARY = Path("/run/tmp")

#: Where programs leave their shared memory when they are killed (shm_overview(7)).
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

_OUTPUTS = "HTCONDOR_VPN_OUTPUTS"

_FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
    signal.SIGALRM,
}  # fmt: skip


def inside() -> bool:
    """Tells whether this process is the sandbox's root."""
    return os.geteuid() == 0 and os.environ.get(MARK) == _user_namespace()


def _user_namespace() -> str:
    return "{}:{}".format(*namespaces.namespace_of("self", "user"))


def exec_inside(argv: Sequence[str], reachable: Iterable[Path] = ()) -> int:
    """Runs `argv` in a new sandbox and returns its exit code, 128 + n if signal n ended it.

    Signals sent to the caller are forwarded. Started by root, it first becomes an ordinary account (`account`), for
    which the checkout, the Python environment, the current folder and the folders `reachable` are made to be where
    they are, also below a closed folder. Inheritable descriptors go along (see `outputs`).

    Raises `AccountUnusable`, `NamespacesUnavailable`, `CommandNotFound`, `CommandNotExecutable`. To be called in the
    main thread of a process without other threads.
    """
    signals = SignalDescriptor({*_FORWARDED, signal.SIGCHLD})
    try:
        ours, theirs = Channel.pair()
        caller = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        keeper = os.fork()
        if keeper == 0:
            ours.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, signals.mask_before)
            _report_failure(theirs, lambda: _keep(argv, list(reachable), theirs, caller))
        theirs.close()
        try:
            command = _hear(ours)
        except VpnError:
            os.waitpid(keeper, 0)
            raise
        return _wait(keeper, command, signals)
    finally:
        signals.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, signals.mask_before)


def _hear(channel: Channel) -> int | None:
    """Returns the command's pidfd once it has been executed; raises what went wrong before."""
    command = None
    while (message := channel.receive()) is not None:
        body, descriptors = message
        if "error" in body:
            raise by_name(body["error"], body["cause"], body["remedy"])
        command = descriptors[0]
    channel.close()
    return command


def _wait(keeper: int, command: int | None, signals: SignalDescriptor) -> int:
    """Waits for the keeper and forwards what other processes send to us; a terminal's keys reach the command anyway."""
    while True:
        pid, status = os.waitpid(keeper, os.WNOHANG)
        if pid:
            if command is not None:
                os.close(command)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        select.select([signals], [], [])
        for received in signals.read():
            if received.number in _FORWARDED and not received.by_kernel and command is not None:
                try:
                    signal.pidfd_send_signal(command, received.number)
                except ProcessLookupError:
                    continue  # it has just ended; the keeper's end follows


def _report_failure(channel: Channel, body: Callable[[], NoReturn]) -> NoReturn:
    """Calls `body`, which does not return unless it fails, and tells the caller about a failure."""
    try:
        body()
    except VpnError as error:
        channel.send({"error": type(error).__name__, "cause": error.cause, "remedy": error.remedy})
    except Exception as error:  # a forked child must not run its parent's code any further
        channel.send({"error": "VpnError", "cause": f"no sandbox: {type(error).__name__}: {error}", "remedy": ""})
    finally:
        os._exit(70)


def _keep(argv: Sequence[str], reachable: list[Path], channel: Channel, caller: int) -> NoReturn:
    """The keeper: becomes an ordinary account, makes the namespaces, and waits for what runs in them."""
    environ = dict(os.environ)
    if os.geteuid() == 0:
        environ = _step_down(environ, reachable)
    _die_with(caller)
    namespaces.new_user_namespace(
        namespaces.CLONE_NEWNS | namespaces.CLONE_NEWNET | namespaces.CLONE_NEWPID, inside_uid=0, inside_gid=0
    )
    keeper = os.getpid()
    init = os.fork()
    if init == 0:
        _report_failure(channel, lambda: _init(argv, environ, channel, keeper))
    channel.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # they are the command's; a terminal sends them to all
    code = os.waitstatus_to_exitcode(os.waitpid(init, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _step_down(environ: dict[str, str], reachable: list[Path]) -> dict[str, str]:
    """Makes root an ordinary account that finds the project where it is, and returns that account's environment."""
    account = accounts.ordinary_account(environ)
    working = Path.cwd()
    checkout = Path(htcondor_vpn.__file__).parents[1]
    try:
        accounts.make_reachable(account, [checkout, Path(sys.prefix), Path(sys.base_prefix), *reachable], working)
        accounts.become(account)
        os.chdir(working)
    except OSError as error:
        raise AccountUnusable(f"this root cannot become {account.name}: {error}", "start it as that user") from error
    os.umask(0o022)
    return accounts.environment(account, environ)


def _die_with(parent: int) -> None:
    namespaces.die_with_parent(signal.SIGKILL)
    if os.getppid() not in (parent, 0):  # 0: it is outside of our PID namespace
        os._exit(128 + signal.SIGKILL)


def _init(argv: Sequence[str], environ: dict[str, str], channel: Channel, keeper: int) -> NoReturn:
    """PID 1: mounts what the namespaces need, executes the command, and reaps all orphans until that has ended."""
    _die_with(keeper)
    keep_mounts_to_ourselves()
    mount("proc", Path("/proc"), "proc")
    mount("run", Path("/run"), "tmpfs", data="mode=755")
    TEMPORARY.mkdir()
    if SHARED_MEMORY.is_dir():
        mount("shm", SHARED_MEMORY, "tmpfs", data="mode=1777")
    run_program([find_program("ip", "iproute2"), "link", "set", "lo", "up"])
    environ = {
        **{name: value for name, value in environ.items() if not name.startswith("XDG_RUNTIME")},
        "TMPDIR": str(TEMPORARY),
        MARK: _user_namespace(),
    }
    mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    command = os.fork()
    if command == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask_before)
        _report_failure(channel, lambda: _execute(argv, environ))
    pidfd = os.pidfd_open(command)
    channel.send({"started": True}, [pidfd])
    channel.close()
    while True:
        pid, status = os.wait()
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _execute(argv: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    program = shutil.which(argv[0], path=environ.get("PATH"))
    if program is None and "/" not in argv[0]:
        raise CommandNotFound(f"there is no command {argv[0]}")
    try:
        os.execve(program or argv[0], list(argv), dict(environ))  # noqa: S606  argv is the caller's command
    except FileNotFoundError as error:
        raise CommandNotFound(f"{argv[0]}: {error.strerror}") from error
    except OSError as error:
        raise CommandNotExecutable(f"{argv[0]}: {error.strerror}") from error


def reserve_output(path: Path) -> None:
    """Opens a file that the command inside is to write, while this process may still be root; raises `UsageError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "choose another file") from error
    os.set_inheritable(descriptor, True)
    reserved = json.loads(os.environ.get(_OUTPUTS, "{}"))
    os.environ[_OUTPUTS] = json.dumps({**reserved, str(path): descriptor})


def open_output(path: Path) -> TextIO:
    """Opens `path` for writing: what `reserve_output` opened before this process was executed, else anew."""
    descriptor = json.loads(os.environ.get(_OUTPUTS, "{}")).get(str(path))
    return path.open("w") if descriptor is None else os.fdopen(os.dup(descriptor), "w")
