"""The states of a pilot's tunnel, and what may leave the node in each."""

from __future__ import annotations

from enum import Enum


class TunnelState(str, Enum):
    """In every state the inner namespace has no way out but the engine, and the engine connects to gateways alone.

    What HTCONDOR_VPN_ROUTES leads to the node's own network leaves as long as COMMAND runs, UP and DOWN alike.
    """

    #: The processes are being made. COMMAND does not exist. Nothing leaves.
    STARTING = "starting"
    #: The engine looks for a gateway. COMMAND does not exist. Only the engine's own connections leave.
    CONNECTING = "connecting"
    #: A gateway was checked and answers. What COMMAND and its jobs send leaves through it.
    UP = "up"
    #: The gateway, the engine or its process was lost; it is being restored. COMMAND runs on, its new connections
    #: fail. Only the engine's own connections leave.
    DOWN = "down"
    #: COMMAND has ended, or we were told to end. What is left inside is killed. Nothing new leaves.
    STOPPING = "stopping"
    #: All is over, after COMMAND ran. Nothing leaves.
    STOPPED = "stopped"
    #: All is over, and COMMAND never ran. Nothing leaves, and no COMMAND ran outside of the namespace instead.
    FAILED = "failed"

    def may_become(self, other: TunnelState) -> bool:
        return other in _NEXT[self]


_NEXT = {
    TunnelState.STARTING: {TunnelState.CONNECTING, TunnelState.STOPPING, TunnelState.FAILED},
    TunnelState.CONNECTING: {TunnelState.UP, TunnelState.STOPPING, TunnelState.FAILED},
    TunnelState.UP: {TunnelState.DOWN, TunnelState.STOPPING, TunnelState.FAILED},
    TunnelState.DOWN: {TunnelState.UP, TunnelState.STOPPING, TunnelState.FAILED},
    TunnelState.STOPPING: {TunnelState.STOPPED, TunnelState.FAILED},
    TunnelState.STOPPED: set(),
    TunnelState.FAILED: set(),
}
