"""What a network namespace's own TCP has counted (`/proc/net/snmp`, RFC 4022)."""

from __future__ import annotations


def resent_segments() -> int | None:
    """How many segments were sent again, in the network namespace of this thread; None where nobody tells."""
    try:
        with open("/proc/thread-self/net/snmp", encoding="ascii") as file:
            names, values = (line.split() for line in file if line.startswith("Tcp:"))
        return int(values[names.index("RetransSegs")])
    except (OSError, ValueError):
        return None
