"""Jobs of which nothing is left but their links and processes: wrapper and broker were killed, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress

from htcondor_vpn.linux import ancestry


def abandoned(numbers: Collection[int], leads_to: Callable[[int, int], bool]) -> set[ancestry.Identity]:
    """The user namespaces, below our own, of the processes at the other end of the links of job networks `numbers`.

    `leads_to` tells whether a job network's link ends in the network namespace of a descriptor.
    """
    status = os.stat("/proc/self/ns/user")
    seen: set[ancestry.Identity] = set()
    found: set[ancestry.Identity] = set()
    for pid in ancestry.processes_within((status.st_dev, status.st_ino)):
        with suppress(OSError):  # it has ended meanwhile
            network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if (identity := ancestry.identity(network)) in seen:
                    continue
                seen.add(identity)
                if any(leads_to(number, network) for number in numbers):
                    owner = ancestry.owner(network)
                    found.add(ancestry.identity(owner))
                    os.close(owner)
            finally:
                os.close(network)
    return found
