"""What a job sent last: it has left the job's network before that goes."""

from __future__ import annotations

import time

from htcondor_vpn.jobnet.wrapper.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:  # which knows the module by this name
    import signal as _signal
else:
    import _signal

DELIVERY_SECONDS = 10.0
DELIVERY_POLL_SECONDS = 0.01

#: FIN_WAIT1, LAST_ACK and CLOSING, as `/proc/net/tcp` has them (include/net/tcp_states.h).
UNSENT_STATES = ("04", "09", "0B")


def deliver(job: Job, before: int) -> None:
    """Waits for what the job sent last: its connections end with its network, which goes when this process does.

    Not longer than `DELIVERY_SECONDS`, nor when a signal says that there is no time. `before` is how many sockets the
    job's network had without the job.
    """
    deadline = time.monotonic() + DELIVERY_SECONDS
    while tcp_sockets() > before and unsent() and time.monotonic() < deadline:
        if job.signals().strip(bytes([_signal.SIGCHLD])):
            return
        time.sleep(DELIVERY_POLL_SECONDS)  # nothing tells when a connection without a process has delivered


def tcp_sockets() -> int:
    """How many TCP sockets the network namespace has, those that listen and those that no process has included.

    The kernel counts them (`/proc/net/sockstat`), while for their states it goes through all of the machine's: 10 ms.
    """
    count = 0
    for name in ("sockstat", "sockstat6"):
        try:
            with open(f"/proc/self/net/{name}") as file:
                count += sum(int(words[2]) for words in map(str.split, file) if words[0] in ("TCP:", "TCP6:"))
        except FileNotFoundError:
            continue  # a kernel without IPv6
    return count


def unsent() -> bool:
    """Whether a connection that its process has closed still has something to send: proc(5), `/proc/net/tcp`."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{name}") as file:
                if any(line.split(None, 4)[3] in UNSENT_STATES for line in file):
                    return True
        except OSError:
            continue  # a kernel without IPv6
    return False
