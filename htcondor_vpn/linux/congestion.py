"""TCP's congestion control of a network namespace whose connections end on this host (tcp(7))."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_WITHOUT_PACING = ("cubic", "reno")


def pace_nothing() -> None:
    """Has this network namespace send without timers: what goes to an engine on this host passes no queue on the way.

    A new namespace has what the host has, and a host's bbr would have each segment wait for its instant.
    """
    path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    with suppress(OSError):  # as fast as the host would have it, then
        if path.read_text().strip() not in _WITHOUT_PACING:
            path.write_text("reno")
