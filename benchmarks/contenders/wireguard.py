"""Ours: the engine wireguard through a gateway of ours, which is an ordinary user's as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.contenders.pilot import PilotContender
from htcondor_vpn.testbed.gateway import SiteWireguardGateway
from htcondor_vpn.testbed.site import Site
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go

NAME = "wireguard to our gateway"


@contextmanager
def wireguard_gateway(site: Site) -> Iterator[PilotContender]:
    """A connected pilot, and the gateway, from `with` on."""
    with SiteWireguardGateway(site.dmz, site.folder / "wireguard-gateway") as gateway:
        assert gateway.process is not None
        knobs = {"ENGINE": "wireguard", "WIREGUARD_CONFIG_FILES": gateway.config, "WIREGUARD_GO": wireguard_go()}
        options = [word for name, value in knobs.items() for word in ("--set", f"HTCONDOR_VPN_{name}={value}")]
        with PilotContender(site, NAME, options, [gateway.process.pid]) as pilot:
            yield pilot
