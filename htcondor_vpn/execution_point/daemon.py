"""`htcondor-vpn execution-point`: the broker as a service of root's, for HTCondor whose daemons root runs.

It makes a folder with its socket and with what HTCondor runs, and has the host forward for jobs. Told to end (SIGTERM)
it takes everything away again; told to start anew (SIGHUP), or killed, it leaves jobs and their networks as they are,
for the next one to take over.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.condor.programs import write_programs
from htcondor_vpn.errors import AccountUnusable, ProgramMissing, RunFolderError
from htcondor_vpn.execution_point.host_network import HostNetwork
from htcondor_vpn.execution_point.place import ExecutionPoint
from htcondor_vpn.execution_point.tunnel import LOOK_SECONDS, Tunnel, take_back
from htcondor_vpn.gateway.service_manager import notify
from htcondor_vpn.jobnet import hook, wrapper
from htcondor_vpn.jobnet.broker import Broker
from htcondor_vpn.jobnet.policy.policy import make_policy, read_policy
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.settings import Settings

_PROGRAMS = {
    "job-wrapper": Path(*wrapper.__path__), "prepare-job": Path(hook.__file__), "update-job-info": Path(hook.__file__),
}  # fmt: skip
_LOCK, _DECISIONS = "run.lock", "decisions"

log = logging.getLogger(__name__)


def run(settings: Settings, again: Sequence[str], announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; `again` is the command line that SIGHUP executes in its place.

    `announce` gets the line `ready`. Raises `VpnError`.
    """
    if os.geteuid() != 0:
        raise AccountUnusable("only root can give the jobs of other accounts a network", "start it as root")
    require_for_all(Path(os.path.realpath(sys.executable)))
    folder: Path = settings.execution_point_dir
    policy = make_policy(read_policy(settings), settings)
    lock = _take(folder)
    network = HostNetwork(settings, folder)
    nft = find_program("nft", "nftables")
    tunnel = Tunnel(settings.execution_point_tunnel, nft) if settings.execution_point_tunnel else None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.open(folder / _DECISIONS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    policy.open()
    broker = asyncio.run(_serve(ours, again, announce, network, tunnel, lambda: Broker(
        theirs, settings, folder, ExecutionPoint(network, tunnel), policy, memory, public=True
    )))  # fmt: skip
    notify("STOPPING=1")
    broker.networks.end_all()
    take_back(nft)  # also what one before us had, with other settings
    network.close()
    leave(folder, lock)


def require_for_all(python: Path) -> None:
    """Raises `ProgramMissing` unless every account can execute `python`, which jobs' wrappers and hooks run by."""
    for path in (*reversed(python.parents), python):
        if not path.stat().st_mode & 0o001:
            raise ProgramMissing(
                f"jobs' accounts cannot execute {python}: {path} is closed to them",
                "install this for a Python that every account can execute: /usr/bin/python3 -m venv …",
            )


async def _serve(
    ours: socket.socket,
    again: Sequence[str],
    announce: Callable[[str], None],
    network: HostNetwork,
    tunnel: Tunnel | None,
    make: Callable[[], Broker],
) -> Broker:
    """Serves until it is told to end; returns the broker."""
    loop = asyncio.get_running_loop()
    broker = make()  # inside the loop, as its parts need it below Python 3.10
    ours.setblocking(False)

    def hear() -> None:
        if json.loads(ours.recv(1 << 12)).get("ready"):
            announce("ready")
            notify("READY=1")

    def end() -> None:
        if ours.fileno() >= 0:
            loop.remove_reader(ours)
            ours.close()

    def start_anew() -> None:
        log.info("starts anew; jobs and their networks stay")
        notify("RELOADING=1")
        os.execv(again[0], list(again))  # as when it is killed, but that nobody has to start another one

    loop.add_signal_handler(signal.SIGHUP, start_anew)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    network.open()
    if tunnel is not None:
        tunnel.open()
    keeping = asyncio.ensure_future(_keep(tunnel))
    loop.add_reader(ours, hear)
    try:
        await broker.run()
    finally:
        keeping.cancel()
    return broker


async def _keep(tunnel: Tunnel | None) -> None:
    """Follows the tunnel's account, whose `htcondor-vpn run` may be started again while jobs run."""
    while tunnel is not None:
        tunnel.attach()
        await asyncio.sleep(LOOK_SECONDS)


def _take(folder: Path) -> int:
    """Makes the folder with what HTCondor runs, for one broker alone; returns the lock. Raises `RunFolderError`."""
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        status = folder.stat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise RunFolderError(f"others than root may write into {folder}", f"chown root {folder}, and chmod 755")
        lock = locked(folder)
        folder.chmod(0o755)
        write_programs(folder / "libexec", _PROGRAMS, 0o755)
    except BlockingIOError as error:
        raise RunFolderError(f"another broker serves in {folder}", "stop that one first") from error
    except OSError as error:
        cause = f"{folder} cannot be made: {error.strerror}"
        raise RunFolderError(cause, "set HTCONDOR_VPN_EXECUTION_POINT_DIR") from error
    return lock


def locked(folder: Path) -> int:
    """Locks the folder, which may be about to vanish, and returns the descriptor; raises BlockingIOError, OSError.

    What is locked is the lock that is there: not the one that its holder, who is ending, has just removed.
    """
    while True:
        folder.mkdir(mode=0o755, exist_ok=True)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(folder / _LOCK)):
                return lock
        except FileNotFoundError:
            pass
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def leave(folder: Path, lock: int) -> None:
    """Removes the folder, its lock last: who comes before that would lose what it has just put there."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # the next one may be in it already
        folder.rmdir()
    os.close(lock)
