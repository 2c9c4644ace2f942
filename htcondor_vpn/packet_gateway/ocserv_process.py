"""A running ocserv, in a namespace of ours or on this host as it is."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from htcondor_vpn.gateway import pretend_privilege_drop
from htcondor_vpn.linux import seccomp
from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace

_END_SECONDS = 5.0
_START_SECONDS = 10.0

log = logging.getLogger(__name__)


class OcservProcess:
    """One ocserv with its children, from `start` to `end`; its log goes to our standard error."""

    def __init__(self, process: asyncio.subprocess.Process, listener: int | None) -> None:
        self._process, self._listener = process, listener
        if listener is not None:
            asyncio.get_running_loop().add_reader(listener, self._asked, listener)

    @classmethod
    async def start(cls, config: Path, namespace: TunNamespace | None, single_uid: bool) -> OcservProcess:
        """Starts it; in `namespace` it gets those sockets from us that are to be this host's. Raises OSError, VpnError.

        With `single_uid` it is told that it has dropped its privileges, as there is no other account to become.
        """
        argv = [find_program("ocserv"), "--foreground", "--debug", "2", "--config", str(config)]
        if single_uid:
            argv = [sys.executable, "-I", pretend_privilege_drop.__file__, *argv]
        if namespace is None:
            prepare = functools.partial(die_with_parent, signal.SIGKILL)
            return cls(await _executed(argv, prepare), None)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(_START_SECONDS)

            def enter() -> None:
                namespace.enter()
                listener = seccomp.suspend_sockets(seccomp.Suspended.WITH_PROTOCOL)
                socket.send_fds(theirs, [b"x"], [listener])
                os.close(listener)

            process = await _executed(argv, enter)
            _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
        return cls(process, listener)

    def _asked(self, listener: int) -> None:
        try:
            seccomp.answer(listener, socket.socket)
        except OSError as error:
            log.warning("ocserv gets no socket: %s", error)

    async def ended(self) -> int:
        """Returns its exit code when it has one."""
        return await self._process.wait()

    def kill(self) -> None:
        """Kills it, be it stopped; `ended` returns soon afterwards."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Asks it to end, and kills it if it does not."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _END_SECONDS)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            os.close(self._listener)
            self._listener = None


async def _executed(argv: Sequence[str], prepare: Callable[[], object]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr.fileno(), preexec_fn=prepare, cwd="/"
    )
