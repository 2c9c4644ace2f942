"""How much a flow carried."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Traffic:
    """What one flow carried, payload bytes; `reset` tells that it was cut rather than ended by both sides."""

    bytes_to_plain: int = 0
    bytes_from_plain: int = 0
    reset: bool = False
