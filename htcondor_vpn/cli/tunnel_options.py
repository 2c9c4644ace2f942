"""The options by which a command line says how the tunnel is to be, and running something in that tunnel."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import UsageError
from htcondor_vpn.linux.signals import die_like
from htcondor_vpn.linux.temporary_folders import TemporaryFolder
from htcondor_vpn.pilot.launch import launch
from htcondor_vpn.pilot.supervisor import Interrupted
from htcondor_vpn.settings import Settings

_SHORTHANDS = {
    "engine": ("ENGINE", "WORD", "stream, wireguard, openconnect, proxy, socks5, ssh or auto"),
    "gateway": ("GATEWAYS", "HOST:PORT", "a gateway, or a list of them"),
    "pin": ("GATEWAY_PIN", "PIN", "the gateway's pin-sha256:…"),
    "pin-file": ("GATEWAY_PIN_FILE", "FILE", "the gateway's gateway.pin"),
    "ca-file": ("GATEWAY_CA_FILE", "FILE", "the CA that vouches for the gateway"),
    "token-file": ("TOKEN_FILE", "FILE", "the file with the pilot's token"),
    "run-dir": ("RUN_DIR", "FOLDER", "the run folder"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE", help="a file of knobs")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="set any knob")
    for option, (knob, metavar, text) in _SHORTHANDS.items():
        parser.add_argument(f"--{option}", metavar=metavar, help=f"{text} (HTCONDOR_VPN_{knob})")
    parser.add_argument("-v", "--verbose", action="store_true", help="log to stderr too")


def settings_of(args: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """The settings that the options, the configuration and `environment` mean; raises `UsageError` and others."""
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
    return Settings.load(config_files(args.config, environment).files, environment, overrides)


def status_of(
    settings: Settings,
    argv: Sequence[str],
    environment: Mapping[str, str],
    verbose: bool,
    belongings: Sequence[TemporaryFolder] = (),
) -> int:
    """Runs `argv` in the tunnel and returns its wait status; the folders `belongings` end with it.

    A signal that came before it ran ends this process.
    """
    try:
        return launch(settings, argv, environment, verbose, belongings)
    except Interrupted as interrupted:
        die_like(interrupted.number)
        raise


def end_like(status: int) -> int:
    """Returns the exit code of a wait status, or dies by its signal."""
    if os.WIFSIGNALED(status):
        die_like(os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)
