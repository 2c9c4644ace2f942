"""What leads past the tunnel, by a pilot's settings: routes to other engines and to the node's network, and names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from htcondor_vpn.errors import ConfigError
from htcondor_vpn.knob_values import GatewayEndpoint
from htcondor_vpn.knobs import PREFIX
from htcondor_vpn.pilot.engines import MakePool, gateway_maker, maker
from htcondor_vpn.route_rules import DIRECT, REJECT, TUNNEL, RouteRule
from htcondor_vpn.settings import Settings
from htcondor_vpn.tunnel.carriers.private_names import PrivateNames
from htcondor_vpn.tunnel.ladder import Ladder
from htcondor_vpn.tunnel.routes import NodeNetwork, Outlet, Rejection, Route
from htcondor_vpn.tunnel.workers.workers import Workers

_OUTLETS: dict[str, Outlet | None] = {TUNNEL: None, DIRECT: NodeNetwork(), REJECT: Rejection()}


def detours(settings: Settings) -> Callable[[Path, Workers], Sequence[Route]]:
    """Returns what makes the routes, in the engine's process, given a folder that it may make; raises as `maker`."""
    makers = {rule.by: _maker(rule, settings) for rule in settings.routes if rule.way not in _OUTLETS}

    def routes(folder: Path, workers: Workers) -> list[Route]:
        if makers:
            folder.mkdir(mode=0o700, exist_ok=True)
        ladders = {by: Ladder([make(folder, workers)]) for by, make in makers.items()}
        found = []
        for rule in settings.routes:
            ladder = ladders.get(rule.by)
            found.append(Route(rule, ladder or _OUTLETS[rule.way], ladder))
        return found

    return routes


def private_names(settings: Settings) -> PrivateNames | None:
    """Who is asked for names of the site's own, if anyone is."""
    if not settings.direct_domains:
        return None
    return PrivateNames(settings.direct_domains, settings.direct_name_servers)


def _maker(rule: RouteRule, settings: Settings) -> MakePool:
    if rule.gateway is not None:
        return gateway_maker([GatewayEndpoint(*rule.gateway)], settings)
    try:
        return maker(rule.engine, settings)
    except ConfigError as error:
        raise ConfigError(
            f"{PREFIX}ROUTES leads {rule.destination} to the engine {rule.engine}: {error.cause}", error.remedy
        ) from None
