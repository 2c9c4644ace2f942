"""How a gateway stands, as it tells who probes it: pilots spread their flows by it, and leave one that drains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Standing:
    """`flows` and `load` are the whole gateway's; a load of 1 means that nothing more fits in.

    `draining`: no flow is begun any more, those that there are go on.
    """

    flows: int = 0
    load: float = 0.0
    draining: bool = False
