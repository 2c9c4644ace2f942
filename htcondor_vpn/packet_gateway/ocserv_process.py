"""A running ocserv, in a namespace of ours or on this host as it is."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from htcondor_vpn.errors import NamespacesUnavailable, VpnError, by_name
from htcondor_vpn.gateway import pretend_privilege_drop
from htcondor_vpn.linux import seccomp
from htcondor_vpn.linux.namespaces import die_with_parent
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.tunnel.carriers.tun_namespace import TunNamespace

_END_SECONDS = 5.0
_START_SECONDS = 10.0
_WORDS_BYTES = 4096
_CONTINUE_LOOKS, _MOST_LOOKS = 3, 30

log = logging.getLogger(__name__)


class OcservProcess:
    """One ocserv with its children, from `start` to `end`; its log goes to our standard error."""

    def __init__(self, process: asyncio.subprocess.Process, listener: int | None) -> None:
        self._process, self._listener = process, listener
        self._stopped: dict[int, int] = {}  # in how many looks in a row
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
                try:
                    namespace.enter()
                    listener = seccomp.suspend_sockets(seccomp.Suspended.WITH_PROTOCOL)
                except (OSError, VpnError) as error:
                    theirs.send(json.dumps(_told(error)).encode())
                    raise
                socket.send_fds(theirs, [b"x"], [listener])
                os.close(listener)

            try:
                process = await _executed(argv, enter)
            except subprocess.SubprocessError as error:  # all that one learns of it is what `enter` has told
                raise by_name(*json.loads(ours.recv(_WORDS_BYTES))) from error
            _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
        return cls(process, listener)

    def _asked(self, listener: int) -> None:
        try:
            seccomp.answer(listener, socket.socket)
        except OSError as error:
            log.warning("ocserv gets no socket: %s", error)

    def look(self) -> None:
        """To be called every second: has those of its processes go on that are stopped (SIGSTOP), which loses nothing.

        Who stays stopped is killed: without the one that logs users in, ocserv ends; who has a session has a new one.
        """
        now = [pid for pid in _family(self._process.pid) if _is_stopped(pid)]
        self._stopped = {pid: self._stopped.get(pid, 0) + 1 for pid in now}
        for pid, looks in self._stopped.items():
            with contextlib.suppress(ProcessLookupError):
                if looks == _CONTINUE_LOOKS:
                    log.error("process %d of ocserv is stopped, and goes on now", pid)
                    os.kill(pid, signal.SIGCONT)
                elif looks == _MOST_LOOKS:
                    log.error("process %d of ocserv stays stopped, and is killed", pid)
                    os.kill(pid, signal.SIGKILL)

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


def _told(error: OSError | VpnError) -> tuple[str, str, str]:
    """What `by_name` makes an error of."""
    if isinstance(error, VpnError):
        return type(error).__name__, error.cause, error.remedy
    cause = f"ocserv cannot be started in the gateway's namespace: {error.strerror}"
    return NamespacesUnavailable.__name__, cause, "start the gateway again"


def _family(pid: int) -> Iterator[int]:
    """A process, its children, and theirs, as far as /proc shows them."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from _family(int(child))


def _is_stopped(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b") ")[2][:1] in (b"T", b"t")
