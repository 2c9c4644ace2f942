"""Keeps a tunnel for a glidein: COMMAND of a pilot whose namespaces the glidein's last script enters.

The tunnel ends when this does, and this ends when the glidein does, however it ends: the kernel tells by a pidfd
(pidfd_open(2)).
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable


def hold(glidein: int, ready: Callable[[], None]) -> None:
    """Calls `ready`, then waits for the end of the process `glidein`, which may have come already.

    Signals that end a glidein reach us as well where a batch system sends them to all of its job: then the glidein
    ends in order, and needs the tunnel for that.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        descriptor = os.pidfd_open(glidein)
    except ProcessLookupError:
        return
    ready()
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.poll()
    os.close(descriptor)
