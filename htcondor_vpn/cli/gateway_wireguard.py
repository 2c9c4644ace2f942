"""`htcondor-vpn gateway wireguard`: the pilots of a WireGuard gateway."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from htcondor_vpn.cli.output import date, print_secret, print_table, say
from htcondor_vpn.settings import Settings

if TYPE_CHECKING:
    from htcondor_vpn.gateway.wireguard_pilots import WireguardPilots


def add_verbs(parser: argparse.ArgumentParser, add_common: Callable[[argparse.ArgumentParser, object], None]) -> None:
    """Adds `add`, `revoke` and `list`; `add_common` adds the options that all verbs of a gateway have."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add = verbs.add_parser("add", help="print a pilot's configuration file, with a new key; it cannot be seen again")
    add.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it to FILE (mode 0600) instead")
    add.set_defaults(act=_add)
    revoke = verbs.add_parser("revoke", help="end a pilot's key; its packets are taken no more within seconds")
    revoke.set_defaults(act=_revoke)
    for verb in (add, revoke):
        verb.add_argument("pilot_name", metavar="NAME")
    listing = verbs.add_parser("list", help="list the pilots, and their addresses in the tunnel")
    listing.set_defaults(act=_list)
    for verb in (add, revoke, listing):
        add_common(verb, argparse.SUPPRESS)


def _add(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.operation.listening import name_of
    from htcondor_vpn.gateway.trust.folder import open_folder, write_atomically
    from htcondor_vpn.gateway.wireguard_pilots import client_file, public_key, server_key
    from htcondor_vpn.packet_gateway.wireguard import endpoint

    own_key = public_key(server_key(open_folder(settings.gateway_dir)))
    with _pilots(settings) as pilots:
        pilot, private_key = pilots.add(args.pilot_name)
        try:
            text = client_file(pilot, private_key, own_key, name_of(endpoint(settings)))
            if args.output is None:
                print_secret(text, "the configuration")
            else:
                write_atomically(args.output, text.encode(), 0o600)
        except BaseException:
            pilots.revoke(args.pilot_name)
            raise
    if args.output is not None:
        say(f"the configuration of {args.pilot_name} is in {args.output}")
    return 0


def _revoke(args: argparse.Namespace, settings: Settings) -> int:
    with _pilots(settings) as pilots:
        pilots.revoke(args.pilot_name)
    return 0


def _list(_args: argparse.Namespace, settings: Settings) -> int:
    with _pilots(settings) as pilots:
        rows = [(pilot.name, date(pilot.created), *map(str, pilot.addresses)) for pilot in pilots.list()]
    print_table([("NAME", "MADE", "IPV4", "IPV6"), *rows])
    return 0


def _pilots(settings: Settings) -> WireguardPilots:
    from htcondor_vpn.gateway.trust.folder import open_folder
    from htcondor_vpn.gateway.wireguard_pilots import WireguardPilots

    return WireguardPilots(open_folder(settings.gateway_dir))
