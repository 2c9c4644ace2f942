"""A process' own children: forked, not executed, so that they share its memory."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import UnsupportedOperation
from typing import NamedTuple

from htcondor_vpn.errors import LimitReached, VpnError
from htcondor_vpn.linux.channel import Channel
from htcondor_vpn.linux.descriptors import close_all_but

#: A batch system signals every process of a job. These end when the supervisor does, and not before.
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

log = logging.getLogger(__name__)


class Child(NamedTuple):
    """A child process: `pidfd` becomes readable when it has ended; `channel` reaches it, and ends with it."""

    name: str
    pid: int
    pidfd: int
    channel: Channel

    def reap(self) -> int:
        """Waits for its end, releases what belongs to it, and returns its wait status."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.channel.close()
        return status


def fork_child(name: str, work: Callable[[Channel], None], mask: Iterable[int], keep: Iterable[int] = ()) -> Child:
    """Forks a process that does `work` with its end of a channel and ends; `mask` is its signal mask.

    Of the other descriptors it keeps the standard ones and `keep`: an end that it held by chance would hide from
    others that this process died. A VpnError that ends `work` comes as a message {"error", "cause", "remedy"}.
    Raises OSError where there can be no further process.
    """
    ours, theirs = Channel.pair()
    gc.freeze()  # what exists already shall stay shared
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid:
        theirs.close()
        return Child(name, pid, os.pidfd_open(pid), ours)
    code = 1
    try:
        close_all_but({0, 1, 2, theirs.fileno(), *keep, *_log_descriptors()})
        os.setsid()
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        work(theirs)
        code = 0
    except VpnError as error:
        _report(theirs, error)
    except Exception as error:
        log.exception("the %s failed", name)
        limit = LimitReached.of(error) if isinstance(error, OSError) else None
        _report(
            theirs,
            limit
            or VpnError(f"the {name} failed: {error!r}", "this is a defect: run it with -v, and report what it says"),
        )
    finally:
        logging.shutdown()
        os._exit(code)


def _report(channel: Channel, error: VpnError) -> None:
    try:
        channel.send({"error": type(error).__name__, "cause": error.cause, "remedy": error.remedy})
    except OSError:
        log.error("%s", error)  # there is no one left to tell


def _log_descriptors() -> set[int]:
    found = set()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            with suppress(UnsupportedOperation):  # it writes into memory
                found.add(handler.stream.fileno())
    return found
