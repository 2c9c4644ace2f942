"""One simulated host: its network, mount and UTS namespaces, and commands run on it as an ordinary user or as root."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

from htcondor_vpn.linux import namespaces
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.mounts import bind, keep_mounts_to_ourselves
from htcondor_vpn.linux.programs import ProgramFailed, find_program
from htcondor_vpn.testbed.sandbox import MARK

NETNS_FOLDER = Path("/run/netns")

_CLONE_NEWUTS = 0x04000000


class Host:
    """A host of the site, made from the named network namespace of that name.

    `files` are laid over files of the same path on this host (resolv.conf, hosts); `user_namespace` is the descriptor
    of the user namespace of its ordinary user. Both are optional for a host that only root uses.
    """

    def __init__(self, name: str, files: Mapping[str, Path], user_namespace: int | None = None) -> None:
        self.name = name
        self._user = user_namespace
        self._mounts, self._uts = _in_child(lambda: _mounts_and_name(name, files))

    def close(self) -> None:
        """Lets the namespaces go; the kernel keeps them while processes are in them."""
        for descriptor in (self._mounts, self._uts):
            os.close(descriptor)

    def argv(self, argv: Sequence[str], *, as_root: bool = False, cwd: Path | None = None) -> list[str]:
        """Returns the command line that executes `argv` on this host, in the same process and without a shell.

        It dies with the thread that started it. As an ordinary user it has no capability, also not over this host's
        network; `as_root` it has the sandbox's.
        """
        return [*self._enter(as_root), f"--wdns={cwd or Path.cwd()}", "--", *argv]

    def launcher(self, env: Mapping[str, str] | None = None) -> str:
        """Returns a line of shell that executes a script's arguments on this host as its ordinary user, while we live.

        `env` is added to the environment.
        """
        variables = shlex.join(["env", *(f"{name}={value}" for name, value in env.items())]) + " " if env else ""
        return f'exec {shlex.join(self._enter(as_root=False))} --wdns="$PWD" -- {variables}"$@"'

    def _enter(self, as_root: bool) -> list[str]:
        folder = f"/proc/{os.getpid()}/fd"
        enter = [
            find_program("setpriv", "util-linux"), "--pdeathsig", "KILL", find_program("nsenter", "util-linux"),
            f"--net={NETNS_FOLDER / self.name}", f"--mount={folder}/{self._mounts}", f"--uts={folder}/{self._uts}",
        ]  # fmt: skip
        if as_root:
            return enter
        if self._user is None:
            raise ValueError(f"{self.name} has no ordinary user")
        return [*enter, f"--user={folder}/{self._user}", "--preserve-credentials"]

    def run(
        self,
        argv: Sequence[str],
        *,
        as_root: bool = False,
        timeout_seconds: float = 90,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        cwd: Path | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `argv` on this host and waits; raises subprocess.TimeoutExpired, and `ProgramFailed` if `check`.

        `env` is added to the environment.
        """
        done = subprocess.run(
            self.argv(argv, as_root=as_root, cwd=cwd), input=stdin, capture_output=True, text=True, check=False,
            errors="replace", timeout=timeout_seconds, env=_environment(env, as_root),
        )  # fmt: skip
        if check and done.returncode != 0:
            raise ProgramFailed(argv, done.returncode, done.stderr)
        return done

    def start(
        self,
        argv: Sequence[str],
        *,
        as_root: bool = False,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Starts `argv` on this host; output and errors go to the end of the file `log`, if one is given.

        `Popen.pid` is the command's own. Call it in a thread that lives as long as the command is to live.
        """
        command = self.argv(argv, as_root=as_root, cwd=cwd)
        environ = _environment(env, as_root)
        if log is None:
            return subprocess.Popen(command, env=environ, stdin=stdin, stdout=stdout, pass_fds=pass_fds)
        with log.open("ab") as file:
            return subprocess.Popen(
                command, env=environ, stdin=stdin, stdout=file if stdout is None else stdout, stderr=file,
                pass_fds=pass_fds,
            )  # fmt: skip

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Returns a socket of this host's network, made with the sandbox's capabilities; raises OSError."""

        def make() -> list[int]:
            with (NETNS_FOLDER / self.name).open() as file:
                namespaces.setns(file.fileno(), namespaces.CLONE_NEWNET)
            return [socket.socket(family, kind, protocol).detach()]

        return socket.socket(fileno=_in_child(make)[0])


def ordinary_user_namespace() -> int:
    """Returns a descriptor of a new user namespace in which the sandbox's root is its ordinary account again."""
    uid, gid = outer_id("uid"), outer_id("gid")

    def make() -> list[int]:
        namespaces.new_user_namespace(0, inside_uid=uid, inside_gid=gid)
        return [os.open("/proc/self/ns/user", os.O_RDONLY)]

    return _in_child(make)[0]


def outer_id(kind: str) -> int:
    """Returns the number that our `uid` or `gid` 0 has outside of the sandbox: that of the ordinary account."""
    return int(Path(f"/proc/self/{kind}_map").read_text().split()[1])


def _environment(more: Mapping[str, str] | None, as_root: bool) -> dict[str, str]:
    environ = dict(os.environ)
    if not as_root:
        del environ[MARK]
        try:
            entry = pwd.getpwuid(outer_id("uid"))
            environ.update(USER=entry.pw_name, LOGNAME=entry.pw_name, HOME=entry.pw_dir)
        except KeyError:
            pass  # an account that no password file knows keeps what it came with
    return {**environ, **(more or {})}


def _mounts_and_name(name: str, files: Mapping[str, Path]) -> list[int]:
    namespaces.unshare(namespaces.CLONE_NEWNS | _CLONE_NEWUTS)
    keep_mounts_to_ourselves()
    socket.sethostname(name)
    for path, source in files.items():
        target = Path(path).resolve()
        if target.is_relative_to("/run") and not target.exists():  # systemd's resolv.conf; the sandbox's /run is empty
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        bind(source, target)
    return [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "uts")]


def _in_child(make: Callable[[], list[int]]) -> list[int]:
    """Runs `make` in a child, since namespaces are not changed in a process that may have threads.

    Returns the descriptors that `make` returns; raises OSError with what it met.
    """
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        _make_and_exit(make, theirs)
    theirs.close()
    try:
        answer = ours.receive()
    finally:
        ours.close()
        os.waitpid(pid, 0)
    if answer is None or not answer[1]:
        raise OSError(*(answer[0]["error"] if answer else (None, "a helper process died")))
    return answer[1]


def _make_and_exit(make: Callable[[], list[int]], channel: Channel) -> NoReturn:
    try:
        channel.send({}, make())
    except Exception as error:  # whatever it is: a forked child must not go on in its parent's code
        number = error.errno if isinstance(error, OSError) else None
        channel.send({"error": [number, f"{type(error).__name__}: {error}"]})
    finally:
        os._exit(0)
