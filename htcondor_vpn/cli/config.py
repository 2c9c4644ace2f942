"""`htcondor-vpn config check|show|docs`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from htcondor_vpn.cli.output import plain, say
from htcondor_vpn.cli.reference import PAGES
from htcondor_vpn.config_sources import Sources, config_files
from htcondor_vpn.errors import ConfigError, ConfigUnreadable, PolicyError, ProgramMissing
from htcondor_vpn.jobnet.policy.policy import examine_policy
from htcondor_vpn.knobs import KNOBS, PREFIX
from htcondor_vpn.settings import ENVIRONMENT_PREFIX, Settings, examine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser("check", help="name every problem of the configuration, with file and line")
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the files to check, in their order")
    show = verbs.add_parser("show", help="print the values in force and where each was set")
    show.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the files to read, in their order")
    for verb in (check, show):
        verb.add_argument("--config", action="append", default=[], type=Path, metavar="FILE", help="the same as FILE")
    docs = verbs.add_parser("docs", help="print a page of docs/ that is written from the code")
    docs.add_argument("page", nargs="?", choices=PAGES, default="knobs", help="which (default: knobs)")


def run(args: argparse.Namespace) -> int:
    """Does what the verb says; returns 0, or the exit code of the worst problem found."""
    if args.verb == "docs":
        say(PAGES[args.page]().rstrip("\n"))
        return 0
    given = [*args.files, *args.config]
    sources = config_files(given, os.environ)
    if args.verb == "check":
        # What was asked for is whether these files are right, not whether the environment hides what they say.
        return _check(sources, _without_knobs(os.environ) if given else os.environ)
    return _show(Settings.load(sources.files, os.environ))


def _without_knobs(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environ.items() if not name.upper().startswith(ENVIRONMENT_PREFIX + PREFIX)}


def _check(sources: Sources, environ: Mapping[str, str]) -> int:
    settings, problems = examine(sources.files, environ)
    if settings.job_policy_file is not None:
        problems += examine_policy(settings.job_policy_file)
    for warning in (*sources.warnings, *settings.warnings):
        say(f"warning: {plain(warning)}")
    for problem in problems:
        print(f"error: {plain(str(problem))}", file=sys.stderr)
    codes = {problem.exit_code for problem in problems}
    for error in (ConfigUnreadable, ConfigError, PolicyError, ProgramMissing):
        if error.exit_code in codes:
            return error.exit_code
    names = ", ".join(str(path) for path in sources.files) or "there are no configuration files"
    say(f"ok: {plain(names)}; {len(settings.origins)} of {len(KNOBS)} knobs are set")
    return 0


def _show(settings: Settings) -> int:
    lines = []
    for knob in KNOBS:
        origin = settings.origins.get(knob.name, "the default")
        lines += [f"# {origin}", f"{knob.name} = {settings.texts.get(knob.name) or knob.default}".rstrip()]
    say("\n".join(map(plain, lines)))
    return 0
