"""From a wrapper's request to its lease: who asks is held first, and then looked at again."""

from __future__ import annotations

from htcondor_vpn.condor.chirp import ChirpConfig, parse_config
from htcondor_vpn.jobnet.admission import NotAllowed
from htcondor_vpn.jobnet.lease import Lease
from htcondor_vpn.jobnet.place import Place
from htcondor_vpn.jobnet.protocol import Connection, Message, ProtocolError
from htcondor_vpn.linux.peers import Peer, Watched, peer_of


def make_lease(
    place: Place, number: int, namespace: int, connection: Connection, peer: Peer, message: Message
) -> Lease:
    """Makes a lease, which owns `namespace`; raises `NotAllowed` when a process of it has ended already."""
    chirp = _chirp(message)
    try:
        wrapper = Watched(peer.pid)
    except ProcessLookupError as error:
        raise NotAllowed(f"the wrapper {peer.pid} has ended") from error
    try:
        starter = Watched(peer.parent_pid) if peer.parent_pid else None
    except ProcessLookupError as error:
        wrapper.close()
        raise NotAllowed(f"the starter {peer.parent_pid} has ended") from error
    except OSError:  # no descriptor is left: all the more none may be lost
        wrapper.close()
        raise
    try:
        # Both are held now: if they are still who they were, their numbers had not come to mean other processes.
        if peer_of(connection.socket) != peer:
            raise NotAllowed("the job's starter has ended")
        place.require_wrapper(peer, namespace)
        return Lease(number, namespace, wrapper, starter, chirp)
    except (NotAllowed, OSError):
        wrapper.close()
        if starter is not None:
            starter.close()
        raise


def _chirp(message: Message) -> ChirpConfig | None:
    if not message.fields.get("chirp"):
        return None
    try:
        return parse_config(message.fields["chirp"])
    except ValueError as error:
        raise ProtocolError(str(error)) from error


def number_in(message: Message, key: str) -> int:
    """Reads a number from a message; raises `ProtocolError`."""
    text = message.fields.get(key, "")
    if not text.isdigit() or len(text) > 10:
        raise ProtocolError(f"the message has no {key}")
    return int(text)
