"""`htcondor-vpn demo`: a real HTCondor job on a simulated node that can reach nothing."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from htcondor_vpn.errors import UsageError
from htcondor_vpn.testbed import condor_prefix, sandbox

#: The rates that a job may ask for by default.
RATES_MBPS = (0.1, 1000.0)
_MOST_MB = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows to FILE too")
    parser.add_argument("--download-mb", type=int, default=40, help="what the job downloads, MB (default: 40)")
    parser.add_argument("--upload-mb", type=int, default=20, help="what the job uploads, MB (default: 20)")
    parser.add_argument(
        "--rate-mbps", type=float, default=200, help="the rate the job asks for, 0.1 to 1000 Mbit/s (default: 200)"
    )


def _check(args: argparse.Namespace) -> None:
    for name, value in (("--download-mb", args.download_mb), ("--upload-mb", args.upload_mb)):
        if not 0 <= value <= _MOST_MB:
            raise UsageError(f"demo: {name} {value} is no size", f"give a number of MB from 0 to {_MOST_MB}")
    if not RATES_MBPS[0] <= args.rate_mbps <= RATES_MBPS[1]:
        raise UsageError(
            f"demo: no job may ask for --rate-mbps {args.rate_mbps:g}",
            f"give a number of Mbit/s from {RATES_MBPS[0]:g} to {RATES_MBPS[1]:g}",
        )


def run(args: argparse.Namespace) -> int:
    _check(args)
    if not sandbox.inside():
        if args.json:
            sandbox.reserve_output(args.json)
        condor_prefix.prefix()  # there is no network in the sandbox from which it could be fetched
        return sandbox.exec_inside([sys.executable, "-m", "htcondor_vpn.cli.main", *sys.argv[1:]])
    from htcondor_vpn.testbed.demo import demonstrate
    from htcondor_vpn.testbed.report import Report

    report = Report("htcondor_vpn: a real job on a node that can reach nothing")
    try:
        demonstrate(report, args.download_mb * 1_000_000, args.upload_mb * 1_000_000, args.rate_mbps)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        # The rows so far are worth having, and say where it stopped.
        report.add("the demonstration came to its end", False, str(error), "", "no error")
    report.conclude()
    if args.json:
        with sandbox.open_output(args.json) as file:
            report.write(file)
    return 0 if report.ok else 1
