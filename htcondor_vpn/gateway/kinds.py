"""What `htcondor-vpn gateway` can run: one module a kind, of which only the chosen one is loaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from htcondor_vpn.settings import Settings

#: In which module of this room each kind has its `run(settings, announce)`.
MODULES = {"stream": "service"}


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Runs the gateway that the settings ask for until SIGTERM or SIGINT; raises `VpnError` if it cannot start.

    `announce` gets a line for each thing that is worth telling, and `ready` at last.
    """
    import_module(f"htcondor_vpn.gateway.{MODULES[settings.gateway_kind]}").run(settings, announce)
