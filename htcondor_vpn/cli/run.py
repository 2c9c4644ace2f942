"""`htcondor-vpn run [options] -- COMMAND`."""

from __future__ import annotations

import argparse
import os

from htcondor_vpn.cli import tunnel_options
from htcondor_vpn.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "htcondor-vpn run [options] -- COMMAND [ARGUMENT…]"
    tunnel_options.add_arguments(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, after --")


def run(args: argparse.Namespace) -> int:
    argv = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not argv:
        raise UsageError("there is no COMMAND to run", "htcondor-vpn run [options] -- COMMAND [ARGUMENT…]")
    settings = tunnel_options.settings_of(args, os.environ)
    return tunnel_options.end_like(tunnel_options.status_of(settings, argv, os.environ, args.verbose))
