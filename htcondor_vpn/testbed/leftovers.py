"""Which processes belong to a site, by their namespaces, however they were started and whoever their parent is now."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from htcondor_vpn.linux.ancestry import Identity, lies_within
from htcondor_vpn.testbed.host import NETNS_FOLDER


def processes(networks: Iterable[str], user_namespace: Identity, without: Iterable[str] = ()) -> list[int]:
    """Returns the processes in one of the named network namespaces, or in or below a user namespace; no zombies.

    Those in the networks `without` are left out, whatever their user namespace is.
    """
    inodes, others = ({(NETNS_FOLDER / name).stat().st_ino for name in names} for names in (networks, without))
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            network = (entry / "ns/net").stat().st_ino
            if network not in others and (network in inodes or _is_below(entry / "ns/user", user_namespace)):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is about to: nobody may look at a process whose memory is gone already
    return sorted(found)


def _is_below(path: Path, user_namespace: Identity) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return lies_within(descriptor, user_namespace)
    finally:
        os.close(descriptor)


def end(which: Callable[[], list[int]], grace_seconds: float) -> None:
    """Asks the processes that `which` returns to end, kills those that have not within `grace_seconds`.

    Raises TimeoutError with their numbers when processes resist that, too.
    """
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0), (signal.SIGKILL, 5.0)):
        pids = which()
        if not pids:
            return
        _signal_and_wait(pids, number, time.monotonic() + seconds)
    if pids := which():
        raise TimeoutError(f"processes cannot be ended: {pids}")


def _signal_and_wait(pids: Iterable[int], number: int, deadline: float) -> None:
    poller, open_ends = select.poll(), set()
    try:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            open_ends.add(descriptor)
            poller.register(descriptor, select.POLLIN)
            try:
                signal.pidfd_send_signal(descriptor, number)
            except ProcessLookupError:
                continue
        waiting = set(open_ends)
        while waiting and (remaining := deadline - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(remaining * 1000):
                poller.unregister(descriptor)
                waiting.discard(descriptor)
    finally:
        for descriptor in open_ends:
            os.close(descriptor)
