"""`htcondor-vpn gateway`: runs a gateway, and manages its pilots' tokens."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from htcondor_vpn import knob_values
from htcondor_vpn.cli import gateway_check, gateway_deny, gateway_operation, gateway_pilots
from htcondor_vpn.cli.output import date, print_secret, print_table, say
from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import ProgramMissing, UsageError
from htcondor_vpn.knobs import PREFIX
from htcondor_vpn.settings import Settings

if TYPE_CHECKING:
    from htcondor_vpn.gateway.trust.tokens import TokenStore

#: Options that set a knob for this run; those that may be given more than once make a list.
_KNOBS = {
    "kind": "GATEWAY_KIND",
    "dir": "GATEWAY_DIR",
    "listen": "GATEWAY_LISTEN",
    "allow": "GATEWAY_ALLOW",
    "deny": "GATEWAY_DENY",
    "name": "GATEWAY_NAMES",
    "cert": "GATEWAY_CERTIFICATE_FILE",
    "key": "GATEWAY_KEY_FILE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `run`, which is what no verb means, and the verbs `token` and `pin`."""
    _add_run_options(parser, default=None)
    parser.set_defaults(act=_run)
    verbs = parser.add_subparsers(metavar="VERB")
    run_verb = verbs.add_parser("run", help="run a gateway (the default)")
    _add_run_options(run_verb, default=argparse.SUPPRESS)
    pin = verbs.add_parser("pin", help="print the pin by which pilots know this gateway")
    _add_run_options(pin, default=argparse.SUPPRESS)
    pin.set_defaults(act=_pin)
    rotate = verbs.add_parser("rotate", help="change the gateway's key without losing a pilot, in two steps")
    step = rotate.add_mutually_exclusive_group(required=True)
    step.add_argument("--prepare", action="store_true", help="make the next key, and add its pin to gateway.pin")
    step.add_argument("--activate", action="store_true", help="use it, once all pilots have that file")
    _add_common_options(rotate, default=argparse.SUPPRESS)
    rotate.set_defaults(act=_rotate)
    check = verbs.add_parser("check", help="tell whether pilots may reach a destination, and by which rule")
    check.add_argument("destination", metavar="HOST:PORT", nargs="+")
    _add_run_options(check, default=argparse.SUPPRESS)
    check.set_defaults(act=gateway_check.check)
    _add_token_verbs(verbs)
    deny = verbs.add_parser("deny", help="refuse pilots whose credentials others have issued")
    gateway_deny.add_verbs(deny, _add_common_options)
    gateway_operation.add_verbs(verbs, _add_common_options)
    gateway_pilots.add_verbs(verbs, _add_common_options)


def _add_token_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    token = verbs.add_parser("token", help="manage the tokens by which this gateway knows its pilots")
    verbs = token.add_subparsers(metavar="VERB", required=True)

    add = verbs.add_parser("add", help="make a token and print it; it cannot be seen again")
    add.add_argument("token_name", metavar="NAME", help="whose it is: the name in the gateway's log")
    add.add_argument("--expires", metavar="TIME", help="how long it is good, such as 30d or 12h (default: for ever)")
    add.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it to FILE (mode 0600) instead")
    add.set_defaults(act=_token_add)
    revoke = verbs.add_parser("revoke", help="end a token; flows under it are cut within seconds")
    revoke.add_argument("token_name", metavar="NAME")
    revoke.set_defaults(act=_token_revoke)
    listing = verbs.add_parser("list", help="list the tokens' names and how long they are good")
    listing.set_defaults(act=_token_list)
    for verb in (add, revoke, listing):
        _add_common_options(verb, default=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Does what the verb says; raises `VpnError`."""
    overrides = {}
    for option, knob in _KNOBS.items():
        value = getattr(args, option)
        if value is not None:
            overrides[PREFIX + knob] = value if isinstance(value, str) else ", ".join(value)
    sources = config_files([args.config] if args.config else [], os.environ)
    settings = Settings.load(sources.files, os.environ, overrides)
    try:
        act: Callable[[argparse.Namespace, Settings], int] = args.act
        return act(args, settings)
    except ModuleNotFoundError as error:
        cause = f"the Python module {error.name}, which a gateway needs, is missing"
        raise ProgramMissing(cause, "pip install 'htcondor-vpn[gateway]'") from error


def _add_common_options(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument("--dir", metavar="DIR", default=default, help="the gateway's folder")
    parser.add_argument("--config", metavar="FILE", type=Path, default=default, help="a file with HTCONDOR_VPN_* knobs")


def _add_run_options(parser: argparse.ArgumentParser, default: object) -> None:
    _add_common_options(parser, default)
    parser.add_argument("--kind", metavar="KIND", default=default, help="stream, wireguard or ocserv (default: stream)")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", action="append", default=default,
        help="where to listen; may be given more than once (default: port 8443 everywhere)",
    )  # fmt: skip
    parser.add_argument(
        "--allow", metavar="NETWORK", action="append", default=default,
        help="a private network that pilots may reach; may be given more than once",
    )  # fmt: skip
    parser.add_argument(
        "--deny", metavar="'NETWORK [port N[-M]]'", action="append", default=default,
        help="a destination that pilots may not reach; may be given more than once",
    )  # fmt: skip
    parser.add_argument(
        "--name", metavar="HOST", action="append", default=default,
        help="a name for the certificate, when it is made; may be given more than once (default: the host's)",
    )  # fmt: skip
    parser.add_argument("--cert", metavar="FILE", default=default, help="a certificate of your own")
    parser.add_argument("--key", metavar="FILE", default=default, help="its private key (mode 0600)")


def _run(_args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway import kinds

    logging.raiseExceptions = False  # a full disk below our own log is nothing that could be told there
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
    )
    for warning in settings.warnings:
        logging.warning("%s", warning)
    kinds.run(settings, _announce)
    return 0


def _announce(line: str) -> None:
    """Says it where there is someone to read it: a full disk, or a reader that has gone, ends no gateway."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def _pin(_args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.operation import service

    say(service.credentials(settings).pin)
    return 0


def _rotate(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.trust import credentials
    from htcondor_vpn.gateway.trust.folder import open_folder

    if settings.gateway_certificate_file is not None:
        raise UsageError("this gateway's certificate is one of your own", "renew it in its place, and it is used")
    folder = open_folder(settings.gateway_dir)
    if args.prepare:
        present, following = credentials.prepare_rotation(folder)
        say(f"{present} is in use\n{following} is the next: ship {folder / credentials.PIN} before you activate it")
    else:
        say(f"{credentials.activate_rotation(folder)} is in use for new connections")
    return 0


def _token_add(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.trust.folder import write_new

    lifetime_seconds = None
    if args.expires is not None:
        try:
            lifetime_seconds = knob_values.quantity(knob_values.UNITS_OF_TIME, 1, 100 * 365 * 86400)(args.expires)
        except ValueError as error:
            raise UsageError(f"--expires {args.expires}: the value {error}", "write it as 30d or 12h") from error
    with _store(settings) as store:
        token = store.add(args.token_name, lifetime_seconds)
        try:
            if args.output is None:
                print_secret(f"{token}\n", "the token")
            else:
                write_new(args.output, f"{token}\n".encode(), 0o600)
        except BaseException:
            store.revoke(args.token_name)
            raise
    if args.output is not None:
        say(f"the token of {args.token_name} is in {args.output}")
    return 0


def _token_revoke(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.trust.folder import open_folder
    from htcondor_vpn.gateway.trust.reserve import spend

    def end() -> None:
        with _store(settings) as store:
            store.revoke(args.token_name)

    spend(open_folder(settings.gateway_dir), end, f"the token of {args.token_name} is not revoked")
    return 0


def _token_list(_args: argparse.Namespace, settings: Settings) -> int:
    with _store(settings) as store:
        rows = [(token.name, date(token.created), date(token.expires), "expired" if token.expired else "good")
                for token in store.list()]  # fmt: skip
    print_table([("NAME", "MADE", "EXPIRES", "STATE"), *rows])
    return 0


def _store(settings: Settings) -> TokenStore:
    from htcondor_vpn.gateway.trust.folder import open_folder
    from htcondor_vpn.gateway.trust.tokens import TokenStore

    return TokenStore(open_folder(settings.gateway_dir))
