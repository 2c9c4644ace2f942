"""`htcondor-vpn run [options] -- COMMAND`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import UsageError
from htcondor_vpn.linux.signals import die_like
from htcondor_vpn.pilot.launch import launch
from htcondor_vpn.pilot.supervisor import Interrupted
from htcondor_vpn.settings import Settings

_SHORTHANDS = {
    "engine": ("ENGINE", "WORD", "stream, proxy, socks5, ssh or auto"),
    "gateway": ("GATEWAYS", "HOST:PORT", "a gateway, or a list of them"),
    "pin": ("GATEWAY_PIN", "PIN", "the gateway's pin-sha256:…"),
    "pin-file": ("GATEWAY_PIN_FILE", "FILE", "the gateway's gateway.pin"),
    "ca-file": ("GATEWAY_CA_FILE", "FILE", "the CA that vouches for the gateway"),
    "token-file": ("TOKEN_FILE", "FILE", "the file with the pilot's token"),
    "run-dir": ("RUN_DIR", "FOLDER", "the run folder"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "htcondor-vpn run [options] -- COMMAND [ARGUMENT…]"
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE", help="a file of knobs")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="set any knob")
    for option, (knob, metavar, text) in _SHORTHANDS.items():
        parser.add_argument(f"--{option}", metavar=metavar, help=f"{text} (HTCONDOR_VPN_{knob})")
    parser.add_argument("-v", "--verbose", action="store_true", help="log to stderr too")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, after --")


def run(args: argparse.Namespace) -> int:
    argv = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not argv:
        raise UsageError("there is no COMMAND to run", "htcondor-vpn run [options] -- COMMAND [ARGUMENT…]")
    overrides = {}
    for assignment in args.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment} has no `=`", "--set KNOB=VALUE")
        overrides[name.strip().upper()] = value
    for option, (knob, _, _) in _SHORTHANDS.items():
        value = getattr(args, option.replace("-", "_"))
        if value is not None:
            overrides[f"HTCONDOR_VPN_{knob}"] = value
    settings = Settings.load(config_files(args.config, os.environ).files, os.environ, overrides)
    try:
        status = launch(settings, argv, os.environ, args.verbose)
    except Interrupted as interrupted:
        die_like(interrupted.number)
        raise
    if os.WIFSIGNALED(status):
        die_like(os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)
