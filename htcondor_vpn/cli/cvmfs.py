"""`htcondor-vpn cvmfs --cvmfsexec PATH [--repositories LIST] -- COMMAND`."""

from __future__ import annotations

import argparse

from htcondor_vpn.errors import UsageError
from htcondor_vpn.linux.signals import die_like
from htcondor_vpn.pilot.wrapped import run_within


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "htcondor-vpn cvmfs --cvmfsexec PATH [--repositories LIST] -- COMMAND [ARGUMENT…]"
    parser.add_argument("--cvmfsexec", required=True, metavar="PATH", help="the program cvmfsexec, unpacked")
    parser.add_argument("--repositories", default="", metavar="LIST", help="which to mount, separated by blanks")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, after --")


def run(args: argparse.Namespace) -> int:
    argv = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not argv:
        raise UsageError("there is no COMMAND to run", "htcondor-vpn cvmfs … -- COMMAND [ARGUMENT…]")
    code = run_within([args.cvmfsexec, "-N", *args.repositories.split(), "--"], argv)
    if code < 0:
        die_like(-code)
    return code
