"""Which processes belong to a site, by their namespaces, however they were started and whoever their parent is now."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from htcondor_vpn.linux.ancestry import Identity, lies_within
from htcondor_vpn.testbed.host import NETNS_FOLDER

_KILLED_SECONDS = 60.0


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


def descendants(pid: int) -> list[int]:
    """Returns the children of a process, of any of its threads, theirs and so on; none if it has ended."""
    try:
        texts = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [each for text in texts for child in map(int, text.split()) for each in (child, *descendants(child))]


def kill(process: subprocess.Popen[bytes], *, with_children: bool = False) -> None:
    """Kills a process, and returns when those below it have ended as well: by themselves, or killed `with_children`.

    Raises subprocess.TimeoutExpired, or TimeoutError with how many have not ended.
    """
    below = _Ends(descendants(process.pid) if process.poll() is None else ())
    try:
        process.kill()
        process.wait(_KILLED_SECONDS)
        if with_children:
            below.signal(signal.SIGKILL)
        if left := below.wait(time.monotonic() + _KILLED_SECONDS):
            raise TimeoutError(f"{left} processes outlived {process.args!r}")
    finally:
        below.close()


class _Ends:
    """The ends of processes to wait for; those that have ended already are none."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._descriptors: list[int] = []
        for pid in pids:
            with suppress(ProcessLookupError):
                self._descriptors.append(os.pidfd_open(pid))

    def signal(self, number: int) -> None:
        """Sends them a signal."""
        for descriptor in self._descriptors:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)

    def wait(self, deadline: float) -> int:
        """Waits for all, and returns how many have not ended by `deadline`."""
        poller, waiting = select.poll(), set(self._descriptors)
        for descriptor in waiting:
            poller.register(descriptor, select.POLLIN)
        while waiting and (remaining := deadline - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(remaining * 1000):
                poller.unregister(descriptor)
                waiting.discard(descriptor)
        return len(waiting)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def _signal_and_wait(pids: Iterable[int], number: int, deadline: float) -> None:
    ends = _Ends(pids)
    try:
        ends.signal(number)
        ends.wait(deadline)
    finally:
        ends.close()
