"""A gateway as the settings describe it: its folder, credentials, sockets and limits put together."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address

from htcondor_vpn.errors import ConfigError
from htcondor_vpn.gateway.operation.allowances import Allowances
from htcondor_vpn.gateway.operation.inheritance import Inheritance, inherited, only_checks
from htcondor_vpn.gateway.operation.listening import listen, name_of, raise_descriptor_limit, within_memory
from htcondor_vpn.gateway.operation.parent import Parent
from htcondor_vpn.gateway.operation.seats import Seats
from htcondor_vpn.gateway.operation.shares import Rates
from htcondor_vpn.gateway.operation.worker import Equipment
from htcondor_vpn.gateway.serving.roster import Limits
from htcondor_vpn.gateway.trust import reserve
from htcondor_vpn.gateway.trust.admission import admits_anyone, gatekeeper
from htcondor_vpn.gateway.trust.credentials import Credentials, given_credentials, own_credentials
from htcondor_vpn.gateway.trust.folder import open_folder
from htcondor_vpn.gateway.trust.renewal import ServerTls
from htcondor_vpn.settings import Settings

log = logging.getLogger(__name__)

#: Half of the connections may be unauthenticated, or so many of each worker.
_FEWEST_STRANGERS = 128


def credentials(settings: Settings) -> Credentials:
    """Returns the gateway's credentials, which are made where there are none; raises `VpnError`."""
    folder = open_folder(settings.gateway_dir)
    reserve.keep(folder)
    certificate, key = settings.gateway_certificate_file, settings.gateway_key_file
    if (certificate is None) != (key is None):
        raise ConfigError(
            "a certificate needs its key, and a key its certificate",
            "set both HTCONDOR_VPN_GATEWAY_CERTIFICATE_FILE and HTCONDOR_VPN_GATEWAY_KEY_FILE, or none of them",
        )
    if certificate is not None:
        return given_credentials(folder, certificate, key)
    return own_credentials(folder, settings.gateway_names or _names(settings))


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Runs a gateway until it is told to end; raises `VpnError` if it cannot start.

    `announce` gets a line for each listening address, the pin, and `ready` once connections are accepted.
    """
    former = inherited()
    found = credentials(settings)
    tls = ServerTls(found, settings.gateway_client_ca_file)
    with gatekeeper(settings):
        pass  # each worker opens its own; what is wrong with it had better be said once
    if only_checks():
        return
    if former is None:
        seats, listeners = Seats(), listen(settings.gateway_listen)
    else:
        seats, listeners = _former_seats(former), [socket.socket(fileno=number) for number in former.listeners]
    # Doubts come last, so that an error is one line.
    if not admits_anyone(settings):
        log.warning("there are no tokens yet: `htcondor-vpn gateway token add NAME` makes one")
    connections = within_memory(raise_descriptor_limit(settings.gateway_connections))
    workers = settings.gateway_workers or len(os.sched_getaffinity(0))
    limits = Limits(
        connections=connections,
        strangers=max(_FEWEST_STRANGERS, connections // (2 * workers)),
        connections_per_token=min(connections, settings.gateway_connections_per_token),
        strangers_per_address=settings.gateway_unauthenticated_per_address,
        handshakes_per_second=settings.gateway_handshakes_per_second,
        grace_seconds=settings.gateway_grace_period,
    )

    def tell() -> None:
        for listener in listeners:
            announce(f"listening on {name_of(listener.getsockname())}")
        announce(found.pin)
        announce("ready")

    equipment = Equipment(settings, tls, limits, rates(settings), workers, seats, Allowances(), listeners)
    Parent(equipment, tell, former).run()


def rates(settings: Settings) -> Rates:
    """Returns the limits of rates in bytes a second."""

    def limit(mbps: float) -> float:
        return mbps * 1e6 / 8 if mbps else math.inf

    return Rates(
        (limit(settings.gateway_up_mbps), limit(settings.gateway_down_mbps)),
        (limit(settings.gateway_pilot_up_mbps), limit(settings.gateway_pilot_down_mbps)),
        tuple((pattern, limit(up), limit(down)) for pattern, up, down in settings.gateway_pilot_rates),
    )


def _former_seats(former: Inheritance) -> Seats:
    """The counts that are handed on; new ones if another version's table looked otherwise."""
    try:
        return Seats(former.seats)
    except ValueError:
        return Seats()


def _names(settings: Settings) -> list[str]:
    """The names for the certificate: this host's, and the addresses at which it listens if they are particular ones."""
    hosts = [host for host, _ in settings.gateway_listen]
    return [socket.gethostname(), *(host for host in hosts if not _is_wildcard(host))]


def _is_wildcard(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
