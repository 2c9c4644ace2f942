"""Puts a pilot together from its settings, runs it, and clears up."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import htcondor_vpn.jobnet
import htcondor_vpn.publish
from htcondor_vpn.errors import LimitReached
from htcondor_vpn.jobnet.policy.policy import read_policy
from htcondor_vpn.linux.signals import SignalDescriptor
from htcondor_vpn.linux.temporary_folders import TemporaryFolder
from htcondor_vpn.pilot.detours import detours, private_names
from htcondor_vpn.pilot.engines import engine_pools
from htcondor_vpn.pilot.run_folder import BASH, RunFolder, remove_abandoned_folders
from htcondor_vpn.pilot.supervisor import FORWARDED, Supervisor
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.catching.catcher import find_nft
from htcondor_vpn.tunnel.engine import Engine
from htcondor_vpn.tunnel.stream import StreamEngine
from htcondor_vpn.tunnel.workers.workers import Workers, worker_count

_JOBNET = Path(htcondor_vpn.jobnet.__path__[0])
_PUBLISH = Path(htcondor_vpn.publish.__path__[0])

#: What the supervisor and the broker need with a few jobs. The engine raises its own limit as far as it may.
_DESCRIPTORS = 64

_HOOK = _JOBNET / ("hook.bash" if BASH.exists() else "hook.py")

#: What HTCondor runs, by name.
LIBEXEC = {
    "job-wrapper": _JOBNET / "wrapper",
    "prepare-job": _HOOK,
    "update-job-info": _HOOK,
    "pool-prepare-job": _JOBNET / "pool_hook.sh",
    "pool-update-job-info": _JOBNET / "pool_hook.sh",
    "advertise": _PUBLISH / "advertiser",
}


def launch(
    settings: Settings,
    argv: Sequence[str],
    environment: Mapping[str, str],
    verbose: bool = False,
    belongings: Sequence[TemporaryFolder] = (),
) -> int:
    """Runs `argv` inside the tunnel and returns its wait status. The folders `belongings` end with it.

    Raises VpnError where it could not be started, and `Interrupted` where a signal came first.
    """
    make_pools, make_routes = engine_pools(settings), detours(settings)
    nft, rules = find_nft(), read_policy(settings)
    _hold_standard_descriptors()
    _check_descriptor_limit()
    signals = SignalDescriptor(FORWARDED | {signal.SIGCHLD})  # from here on there is something to clear up
    folder = RunFolder(settings.run_dir, belongings)
    try:
        _log_to(folder, settings.log_level, verbose)
        for warning in settings.warnings:
            logging.getLogger(__name__).info("%s", warning)
        for left in remove_abandoned_folders():
            logging.getLogger(__name__).warning("%s is removed: a pilot of yours that was killed had left it", left)
        folder.fill(LIBEXEC)

        def engine() -> Engine:
            workers = Workers(worker_count(settings.engine_workers))
            return StreamEngine(
                make_pools(folder.path, workers), (settings.up_mbps, settings.down_mbps),
                make_routes(folder.detours, workers), private_names(settings), workers=workers,
            )  # fmt: skip

        return Supervisor(settings, folder, signals, settings.engine, engine, nft, rules).run(argv, environment)
    except OSError as error:
        logging.getLogger(__name__).exception("the pilot ends")
        if (limit := LimitReached.of(error)) is not None:
            raise limit from error
        raise
    except Exception as error:
        logging.getLogger(__name__).error("%s", error)
        raise
    finally:
        logging.shutdown()
        folder.release()


def _hold_standard_descriptors() -> None:
    """Where we were started with one of them closed, none of our own may take its place. COMMAND finds it closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _check_descriptor_limit() -> None:
    """Raises `LimitReached` where the supervisor could not hold what it needs, and not even clear up."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _DESCRIPTORS:
        raise LimitReached(f"{soft} file descriptors are too few for a pilot", f"ulimit -n {_DESCRIPTORS}, or more")


def _log_to(folder: RunFolder, level: str, verbose: bool) -> None:
    logging.raiseExceptions = False  # a full disk is told once, by who has to write there, and not for each line
    handlers: list[logging.Handler] = [folder.log_handler()]
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s",
        handlers=handlers,
        force=True,
    )
