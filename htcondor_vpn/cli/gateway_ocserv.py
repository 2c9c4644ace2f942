"""`htcondor-vpn gateway ocserv`: the users of an ocserv gateway."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from htcondor_vpn.cli.output import print_secret, say
from htcondor_vpn.settings import Settings


def add_verbs(parser: argparse.ArgumentParser, add_common: Callable[[argparse.ArgumentParser, object], None]) -> None:
    """Adds `add`, `revoke` and `list`; `add_common` adds the options that all verbs of a gateway have."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add = verbs.add_parser("add", help="print USER:PASSWORD for a new user; the password cannot be seen again")
    add.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it to FILE (mode 0600) instead")
    add.set_defaults(act=_add)
    revoke = verbs.add_parser("revoke", help="remove a user, who is thrown out within seconds")
    revoke.set_defaults(act=_revoke)
    for verb in (add, revoke):
        verb.add_argument("user_name", metavar="NAME")
    listing = verbs.add_parser("list", help="list the users")
    listing.set_defaults(act=_list)
    for verb in (add, revoke, listing):
        add_common(verb, argparse.SUPPRESS)


def _add(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.ocserv_users import OcservUsers
    from htcondor_vpn.gateway.trust.folder import write_atomically

    users = OcservUsers(settings.gateway_dir)
    text = f"{args.user_name}:{users.add(args.user_name)}\n"
    try:
        if args.output is None:
            print_secret(text, "the password")
        else:
            write_atomically(args.output, text.encode(), 0o600)
    except BaseException:
        users.revoke(args.user_name)
        raise
    if args.output is not None:
        say(f"name and password of {args.user_name} are in {args.output}")
    return 0


def _revoke(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.ocserv_users import OcservUsers

    OcservUsers(settings.gateway_dir).revoke(args.user_name)
    return 0


def _list(_args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.ocserv_users import OcservUsers

    say("\n".join(OcservUsers(settings.gateway_dir).list()))
    return 0
