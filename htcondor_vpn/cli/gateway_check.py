"""`htcondor-vpn gateway check`: tells whether pilots may reach a destination, and which rule decides."""

from __future__ import annotations

import argparse

from htcondor_vpn.cli.output import print_table
from htcondor_vpn.errors import GatewayNameError, UsageError
from htcondor_vpn.settings import Settings
from htcondor_vpn.special_addresses import Address


def check(args: argparse.Namespace, settings: Settings) -> int:
    """Prints a line for each address of each destination; returns 1 if none of a destination's may be reached."""
    from htcondor_vpn.gateway.serving.destinations import PublicPolicy

    policy = PublicPolicy(settings.gateway_allow, settings.gateway_deny)
    rows, code = [("DESTINATION", "ADDRESS", "VERDICT", "RULE")], 0
    for destination in args.destination:
        verdicts = []
        for address, port in _addresses(destination):
            verdict = policy.judge(address, port)
            verdicts.append(verdict.allowed)
            rows.append((destination, str(address), "reached" if verdict.allowed else "refused", verdict.rule))
        code = code if any(verdicts) else 1
    print_table(rows)
    return code


def _addresses(destination: str) -> list[tuple[Address, int]]:
    from htcondor_vpn.gateway.serving.destinations import parse_target
    from htcondor_vpn.gateway.serving.names import addresses_of

    try:
        host, port = parse_target(destination)
    except ValueError as error:
        raise UsageError(f"{destination}: {error}", "write it as HOST:PORT or [IPV6]:PORT") from error
    if not isinstance(host, str):
        return [(host, port)]
    found = addresses_of(host)
    if isinstance(found, OSError):
        cause = f"{host} has no address: {found.strerror}"
        raise GatewayNameError(cause, "check the name, and this host's name servers") from found
    return [(address, port) for address in dict.fromkeys(found)]
