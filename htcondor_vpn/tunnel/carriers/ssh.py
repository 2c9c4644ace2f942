"""A login node as the way out: `ssh -D` with the user's own configuration, started, watched and ended by us.

ssh listens at a UNIX socket in the run folder, which nobody else on the node can use, and speaks SOCKS5 there. It asks
nothing (BatchMode): keys, an agent or a host-based login must do, and the login node's key must be known.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from htcondor_vpn.errors import GatewayUnreachable, SshRefused, VpnError
from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.tunnel.carriers.segments import Segments
from htcondor_vpn.tunnel.carriers.socks5 import Socks5
from htcondor_vpn.wire.deadline import Deadline
from htcondor_vpn.wire.stream import PlainStream

#: A login takes longer than a probe: name services, keys, hops.
START_SECONDS = 20.0
_ALIVE_SECONDS = 3
#: Login nodes lock out who tries in vain too often.
_REFUSED_SECONDS = 60.0
_WORDS_BYTES, _WORDS_LINES = 4096, 3
_READY = "htcondor-vpn-ready"
#: In what ssh says before it gives up: trying again would not mend it.
_FINAL = ("Permission denied", "Host key verification failed", "Too many authentication failures", "Bad configuration")

log = logging.getLogger(__name__)


class SshForward:
    """A `Proxy` by way of the login node `destination` ([USER@]HOST or ssh://…, an alias of ssh_config too).

    `jumps` are passed on the way there (ProxyJump); `config` takes the place of the user's own configuration file.
    """

    def __init__(self, destination: str, jumps: Sequence[str], config: Path | None, socket_path: Path) -> None:
        self.name = named(destination)
        self._path = socket_path
        self._argv = command(destination, jumps, config, socket_path)
        self._socks = Socks5(f"of ssh to {self.name}", _UnixSocket(socket_path))
        self._life: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._refusal: SshRefused | None = None
        self._refused_until = 0.0

    async def connect(self, host: str, port: int) -> tuple[PlainStream, bytes]:
        """See `Socks5.connect`; starts ssh where it does not run, and raises `SshRefused` where that fails for good."""
        if self._refusal is not None and asyncio.get_running_loop().time() < self._refused_until:
            raise self._refusal
        if self._life is None or self._ready is None or self._life.done():
            self._ready = asyncio.get_running_loop().create_future()
            self._life = asyncio.ensure_future(self._live(self._ready))
        await asyncio.shield(self._ready)
        return await self._socks.connect(host, port)

    async def _live(self, ready: asyncio.Future[None]) -> None:
        """Runs ssh to its end, or until cancelled; `ready` is done when it has logged in, or has the reason why not."""
        said = "it was given up"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
            )
            words = asyncio.ensure_future(_last_words(process))
            try:
                assert process.stdout is not None
                with Deadline(START_SECONDS):
                    line = await process.stdout.readline()
                if _READY in line.decode(errors="replace"):
                    log.info("ssh to %s is ready (process %d)", self.name, process.pid)
                    ready.set_result(None)
                said = await asyncio.shield(words)
            finally:
                _kill(process)
                await words
        except asyncio.TimeoutError:
            said = f"no login within {START_SECONDS:g} s"
        except OSError as error:
            said = str(error)
        finally:
            if not ready.done():
                ready.set_exception(self._failed(said))
                ready.exception()  # who has asked for it may be gone
        log.warning("ssh to %s ended: %s", self.name, said)

    def _failed(self, said: str) -> VpnError:
        cause, remedy = f"ssh to {self.name} failed: {said}", "try by hand: ssh -o BatchMode=yes … true"
        if not any(word in said for word in _FINAL):
            return GatewayUnreachable(cause, remedy)
        self._refusal = SshRefused(cause, remedy)
        self._refused_until = asyncio.get_running_loop().time() + _REFUSED_SECONDS
        return self._refusal

    async def lost(self) -> None:
        if self._life is not None:
            await asyncio.wait([self._life])

    def forget(self) -> None:
        """Ends ssh, and with it every flow."""
        if self._life is not None:
            self._life.cancel()
        self._life = self._ready = None


class _UnixSocket:
    """The `Way` to a UNIX socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.segments = Segments(str(path))

    async def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, str(self._path))
        except BaseException:
            sock.close()
            raise
        return sock

    def forget(self) -> None:
        """A path is never looked up."""


def command(destination: str, jumps: Sequence[str], config: Path | None, socket_path: Path) -> list[str]:
    """The argv of ssh. What it is given here wins over its configuration, where that could break it for us.

    It says `_READY` on its standard output when it has logged in and listens: LocalCommand runs after that
    (ssh_config(5)).
    """
    options = {
        "BatchMode": "yes",
        "ExitOnForwardFailure": "yes",
        "ServerAliveInterval": str(_ALIVE_SECONDS),
        "ServerAliveCountMax": "2",
        "ConnectTimeout": "10",
        "ControlMaster": "no",  # a shared connection would outlive us
        "ControlPath": "none",
        "StreamLocalBindUnlink": "yes",
        "StreamLocalBindMask": "0177",
        "PermitLocalCommand": "yes",
        "LocalCommand": f"echo {_READY}",
        "RemoteCommand": "none",
        "LogLevel": "ERROR",  # not a line for each connection that is refused
    }
    argv = [find_program("ssh", "openssh-client"), "-N", "-T", "-a", "-x"]
    if config is not None:
        argv += ["-F", str(config)]
    if jumps:
        argv += ["-J", ",".join(jumps)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    return [*argv, "-D", str(socket_path), "--", destination]


def named(destination: str) -> str:
    """HOST:PORT of a destination, without a user's name."""
    host = destination.removeprefix("ssh://").rpartition("@")[2]
    return host if host.rpartition(":")[2].isdecimal() and ":" in host else f"{host}:22"


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """LocalCommand is run by $SHELL, which may be one that says more than it is asked to, or nothing."""
    return {**environ, "SHELL": "/bin/sh", "LC_ALL": "C"}


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def _last_words(process: asyncio.subprocess.Process) -> str:
    """Waits for its end, and returns the last lines on its standard error in one."""
    assert process.stderr is not None
    said = b""
    while more := await process.stderr.read(_WORDS_BYTES):
        said = (said + more)[-_WORDS_BYTES:]
    await process.wait()
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip(" @\r\n")]
    return "; ".join(lines[-_WORDS_LINES:]) or f"exit code {process.returncode}"
