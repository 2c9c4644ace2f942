"""`htcondor-vpn doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from htcondor_vpn.cli.output import plain, say
from htcondor_vpn.doctor import shared
from htcondor_vpn.doctor.examination import Asked, examine
from htcondor_vpn.doctor.report import Report
from htcondor_vpn.errors import NodeUnsuitable, UsageError
from htcondor_vpn.knob_values import endpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for option, metavar, text in (
        ("gateway", "HOST:PORT", "connect to this gateway"),
        ("udp", "HOST:PORT", "send a datagram to this WireGuard server"),
        ("ssh", "[USER@]HOST", "log in to this login node"),
        ("shared", "FOLDER", "see how soon others' files are seen there"),
    ):
        parser.add_argument(
            f"--{option}", action="append", default=[], metavar=metavar, help=f"{text}; may be repeated"
        )
    parser.add_argument("--echo", type=float, metavar="SECONDS", help="on another host: answer --shared for that long")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what was found; returns 0 if the default way works here, else the code of `NodeUnsuitable`."""
    folders = [Path(name) for name in args.shared]
    if args.echo is not None:
        return _echo(folders, args.echo)
    gateways, servers = ([_endpoint(text) for text in given] for given in (args.gateway, args.udp))
    report = Report(examine(Asked(gateways, servers, args.ssh, folders)))
    if args.json:
        say(json.dumps(report.json(), indent=1))
    else:
        say("\n".join(map(plain, report.text().splitlines())))
    return 0 if report.default_works else NodeUnsuitable.exit_code


def _echo(folders: list[Path], seconds: float) -> int:
    if len(folders) != 1:
        raise UsageError("--echo takes one --shared FOLDER", "htcondor-vpn doctor --shared FOLDER --echo 600")
    try:
        say(f"questions that were answered: {shared.echo(folders[0], seconds)}")
    except OSError as error:
        raise UsageError(
            f"{folders[0]} cannot be used: {error.strerror}", "name a folder that you may write"
        ) from error
    return 0


def _endpoint(text: str) -> tuple[str, int]:
    try:
        return endpoint(text)
    except ValueError as error:
        raise UsageError(f"{text} {error}", "HOST:PORT; an IPv6 address stands in brackets") from error
