"""`htcondor-vpn job list|show`, and `htcondor-vpn job policy check|explain`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from htcondor_vpn.cli import job_ledger
from htcondor_vpn.cli.job_policy import explain
from htcondor_vpn.cli.output import plain, say
from htcondor_vpn.condor.job_ad import old_syntax
from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import ConfigUnreadable, UsageError
from htcondor_vpn.jobnet.policy.policy import KNOB, examine_policy
from htcondor_vpn.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    nouns = parser.add_subparsers(dest="job_noun", metavar="NOUN", required=True)
    job_ledger.add_arguments(nouns)
    policy = nouns.add_parser("policy", help="check the policy of job networks, and explain what a job gets")
    verbs = policy.add_subparsers(metavar="VERB", required=True)
    check = verbs.add_parser("check", help="name every mistake in a policy file, with its line")
    check.add_argument("file", type=Path, metavar="FILE", help="the policy file")
    check.set_defaults(act=_check)
    explained = verbs.add_parser("explain", help="say what a job gets, by which rule, and why")
    explained.add_argument(
        "job_ad", metavar="JOBAD", help="a file with one job's ad, as `condor_q -long` or -json prints it; - is stdin"
    )
    explained.add_argument(
        "machine_ad", metavar="MACHINEAD", nargs="?", help="the same of the slot, by `condor_status -long` or -json"
    )
    explained.add_argument("--policy", type=Path, metavar="FILE", help=f"the policy file (default: {KNOB})")
    explained.add_argument("--config", type=Path, metavar="FILE", help="a file with HTCONDOR_VPN_* knobs")
    explained.epilog = "Exit code: 0 if the job runs, 3 if it is held or sent elsewhere."
    explained.set_defaults(act=_explain)


def run(args: argparse.Namespace) -> int:
    """Does what the verb says; raises `VpnError`."""
    return int(args.act(args))


def _check(args: argparse.Namespace) -> int:
    problems = examine_policy(args.file)
    for problem in problems:
        print(f"error: {plain(str(problem))}", file=sys.stderr)
    if problems:
        return max(problem.exit_code for problem in problems)
    say(f"ok: {plain(str(args.file))}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    overrides = {KNOB: str(args.policy)} if args.policy else {}
    sources = config_files([args.config] if args.config else [], os.environ)
    settings = Settings.load(sources.files, os.environ, overrides)
    machine_ad = "" if args.machine_ad is None else _read(args.machine_ad)
    return explain(settings, _read(args.job_ad), machine_ad, say)


def _read(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigUnreadable(f"{name} cannot be read: {error.strerror}", "give a file with one ad") from error
    try:
        return old_syntax(data.decode("utf-8", errors="surrogateescape"))
    except ValueError as error:
        remedy = "give one as `condor_q -long JOB` or `condor_status -long SLOT` prints it"
        raise UsageError(f"{name} is no ad: {error}", remedy) from error
