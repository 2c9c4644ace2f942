"""Who may ask the broker for what, by what the kernel says about the peer and its namespaces.

The jobs run with the broker's uid, so the uid alone says little. The user namespace does: HTCondor's own processes are
in the inner one, a wrapper is in one that it made directly below it, and everything a job starts is in its wrapper's or
deeper. A job has no capability in its namespace; the wrapper has, because it made it.
"""

from __future__ import annotations

import os

from htcondor_vpn.linux import ancestry
from htcondor_vpn.linux.namespaces import CLONE_NEWNET
from htcondor_vpn.linux.peers import Peer

_CAP_NET_ADMIN = 1 << 12


class NotAllowed(Exception):
    """The peer may not ask for this; the text says why."""


def require_same_user(peer: Peer) -> None:
    """Raises `NotAllowed` for another user's process."""
    if peer.uid != os.getuid():
        raise NotAllowed(f"process {peer.pid} belongs to uid {peer.uid}, not to uid {os.getuid()}")


def require_pilot_process(peer: Peer, inner: ancestry.Identity) -> None:
    """Raises `NotAllowed` unless the peer is directly in the inner user namespace, as HTCondor's processes are."""
    if _user_namespace(peer) != inner:
        raise NotAllowed(f"process {peer.pid} is not one of the pilot's: a job cannot ask for this")


def require_wrapper(peer: Peer, inner: ancestry.Identity, namespace: int) -> None:
    """Raises `NotAllowed` unless the peer made `namespace`, a network namespace one level below the inner one."""
    try:
        if ancestry.kind(namespace) != CLONE_NEWNET:
            raise NotAllowed("the descriptor is no network namespace")
        owner = ancestry.owner(namespace)
    except OSError as error:
        raise NotAllowed(f"the descriptor is no network namespace of a job: {error.strerror}") from error
    try:
        if not ancestry.is_child_of(owner, inner):
            raise NotAllowed("the network namespace was not made by one of the pilot's processes")
        if _user_namespace(peer) != ancestry.identity(owner) or not peer.capabilities & _CAP_NET_ADMIN:
            raise NotAllowed(f"process {peer.pid} does not rule over the network namespace")
    finally:
        os.close(owner)


def _user_namespace(peer: Peer) -> ancestry.Identity:
    try:
        status = os.stat(f"/proc/{peer.pid}/ns/user")
    except OSError as error:
        raise NotAllowed(f"the namespaces of process {peer.pid} cannot be seen: {error.strerror}") from error
    return status.st_dev, status.st_ino
