"""`htcondor-vpn gateway deny`: ends credentials that others have issued."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from htcondor_vpn.cli.output import date, print_table
from htcondor_vpn.settings import Settings

if TYPE_CHECKING:
    from htcondor_vpn.gateway.trust.deny_list import DenyList


def add_verbs(deny: argparse.ArgumentParser, add_common: Callable[[argparse.ArgumentParser, object], None]) -> None:
    """Adds `add`, `remove` and `list`; `add_common` adds the options that all verbs of a gateway have."""
    verbs = deny.add_subparsers(metavar="VERB", required=True)
    add = verbs.add_parser("add", help="refuse a pilot from now on; its flows are cut within seconds")
    add.set_defaults(act=_add)
    remove = verbs.add_parser("remove", help="take that back")
    remove.set_defaults(act=_remove)
    for verb in (add, remove):
        help_ = "a pilot's name as it stands in the log, or jti:ID, kid:ID, issuer:URL, serial:HEX, sha256:HEX"
        verb.add_argument("denied", metavar="NAME", nargs="+", help=help_)
    listing = verbs.add_parser("list", help="list who is refused")
    listing.set_defaults(act=_list)
    for verb in (add, remove, listing):
        add_common(verb, argparse.SUPPRESS)


def _add(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.trust.folder import open_folder
    from htcondor_vpn.gateway.trust.reserve import spend

    def end() -> None:
        with _deny_list(settings) as deny_list:
            for name in args.denied:
                deny_list.add(name)

    spend(open_folder(settings.gateway_dir), end, "not all of them are denied")
    return 0


def _remove(args: argparse.Namespace, settings: Settings) -> int:
    with _deny_list(settings) as deny_list:
        for name in args.denied:
            deny_list.remove(name)
    return 0


def _list(_args: argparse.Namespace, settings: Settings) -> int:
    with _deny_list(settings) as deny_list:
        rows = [(denial.name, date(denial.created)) for denial in deny_list.list()]
    print_table([("NAME", "DENIED"), *rows])
    return 0


def _deny_list(settings: Settings) -> DenyList:
    from htcondor_vpn.gateway.trust.deny_list import DenyList
    from htcondor_vpn.gateway.trust.folder import open_folder

    return DenyList(open_folder(settings.gateway_dir))
