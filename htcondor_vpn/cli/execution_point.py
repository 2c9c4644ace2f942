"""`htcondor-vpn execution-point`: the broker of job networks for an HTCondor whose daemons root runs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from htcondor_vpn.cli.output import say
from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of running it, which is what no verb means, and the verb `systemd-unit`."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="a file with HTCONDOR_VPN_* knobs")
    parser.add_argument("--dir", metavar="DIR", help="its folder (HTCONDOR_VPN_EXECUTION_POINT_DIR)")
    parser.set_defaults(act=_run)
    verbs = parser.add_subparsers(metavar="VERB")
    unit = verbs.add_parser("systemd-unit", help="print a hardened systemd unit")
    unit.set_defaults(act=_unit)


def run(args: argparse.Namespace) -> int:
    """Does what the verb says; raises `VpnError`."""
    overrides = {"HTCONDOR_VPN_EXECUTION_POINT_DIR": args.dir} if args.dir else {}
    sources = config_files([args.config] if args.config else [], os.environ)
    settings = Settings.load(sources.files, os.environ, overrides)
    act: Callable[[argparse.Namespace, Settings], int] = args.act
    try:
        return act(args, settings)
    except ModuleNotFoundError as error:
        cause = f"the Python module {error.name}, which an execution point needs, is missing"
        raise ProgramMissing(cause, "pip install 'htcondor-vpn[gateway]'") from error


def _run(_args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.execution_point import daemon

    logging.basicConfig(
        stream=sys.stderr, level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )
    for warning in settings.warnings:
        logging.warning("%s", warning)
    again = [*_program(), *sys.argv[1:]]
    daemon.run(settings, again, lambda line: print(line, flush=True))
    return 0


def _unit(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.execution_point.unit import unit

    say(unit(settings, _program(), args.config and args.config.absolute()).rstrip())
    return 0


def _program() -> list[str]:
    script = Path(sys.argv[0]).absolute()
    return [str(script)] if script.name == "htcondor-vpn" else [sys.executable, "-m", "htcondor_vpn.cli.main"]
