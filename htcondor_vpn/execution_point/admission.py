"""Whom the broker of an execution point serves: what a starter of this machine's own HTCondor has started, alone.

Any account may connect, for jobs are of many. What the kernel says of a peer decides: its parent has to be a
condor_starter that root runs, from a file that only root can write; a wrapper has to rule over a user namespace of its
own, directly below the host's, in which nothing else of the job's has begun. And where there are control groups it is
where HTCondor puts what it starts: in its starter's, or where that makes those of jobs, beside it.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from htcondor_vpn.jobnet.admission import NotAllowed, require_pilot_process, require_wrapper
from htcondor_vpn.linux import ancestry
from htcondor_vpn.linux.cgroups import unified_cgroup
from htcondor_vpn.linux.peers import Peer

_STARTER = "condor_starter"


def require_starters_process(peer: Peer, host: ancestry.Identity) -> None:
    """Raises `NotAllowed` unless a starter made the peer, in the host's user namespace: a hook, or an sshd."""
    require_starter(peer)
    require_pilot_process(peer, host)


def require_starters_wrapper(peer: Peer, host: ancestry.Identity, namespace: int) -> None:
    """Raises `NotAllowed` unless a starter made the peer, and that made `namespace`."""
    require_starter(peer)
    require_wrapper(peer, host, namespace)


def require_starter(peer: Peer) -> None:
    """Raises `NotAllowed` unless the peer's parent is a starter of this machine's HTCondor."""
    starter = peer.parent_pid
    try:
        program = os.readlink(f"/proc/{starter}/exe")
        file = os.stat(f"/proc/{starter}/exe")
        with open(f"/proc/{starter}/status", encoding="utf-8", errors="replace") as status:
            uids = next(line for line in status if line.startswith("Uid:")).split()[1:]
    except (OSError, StopIteration) as error:
        raise NotAllowed(f"the parent of process {peer.pid} cannot be seen: {error}") from error
    # A starter works as the job's account or as condor, and can become root again: its saved uid is root's.
    if os.path.basename(program.replace(" (deleted)", "")) != _STARTER or uids[2] != "0":
        raise NotAllowed(f"process {peer.pid} was not started by a {_STARTER} of root's: {program} of uid {uids[0]}")
    if file.st_uid != 0 or file.st_mode & 0o022:
        raise NotAllowed(f"others than root may write {program}")
    try:
        its, starters = unified_cgroup(peer.pid), unified_cgroup(starter)
    except OSError as error:
        raise NotAllowed(f"the control group of process {peer.pid} cannot be seen: {error.strerror}") from error
    if its is not None and starters is not None and not is_where_jobs_are(its, starters):
        where = f"the control group {its}, which is none of the startd's: its starter is in {starters}"
        raise NotAllowed(f"process {peer.pid} is in {where}")


def is_where_jobs_are(cgroup: PurePosixPath, starters: PurePosixPath) -> bool:
    """Whether a starter in the control group `starters` may have started what is in `cgroup`.

    Processes are only in leaves of version 2, so that a starter makes its jobs' groups below the parent of its own.
    """
    return cgroup == starters or starters.parent in (cgroup, *cgroup.parents)
