"""What `htcondor-vpn gateway` can run: one module a kind, of which only the chosen one is loaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from htcondor_vpn.settings import Settings

#: The module in which each kind has its `run(settings, announce)`: in this room, or in one above it.
MODULES = {"stream": "htcondor_vpn.gateway.operation.service", "wireguard": "htcondor_vpn.packet_gateway.wireguard",
           "ocserv": "htcondor_vpn.packet_gateway.ocserv"}  # fmt: skip


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Runs the gateway that the settings ask for until SIGTERM or SIGINT; raises `VpnError` if it cannot start.

    `announce` gets a line for each thing that is worth telling, and `ready` at last.
    """
    import_module(MODULES[settings.gateway_kind]).run(settings, announce)
