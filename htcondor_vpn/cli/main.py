"""The `htcondor-vpn` command: one module a noun, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from htcondor_vpn.errors import UsageError, VpnError

NOUNS = {
    "run": "run a command in a network namespace whose only way out is the tunnel",
    "gateway": "run a gateway, and manage the tokens of its pilots",
    "job": "list jobs and what they moved, and explain the policy of job networks",
    "execution-point": "give jobs their networks on an execution point whose HTCondor root runs",
    "status": "show the state of a running pilot's tunnel",
    "glidein": "start pilots and glideins by hand or by a batch system",
    "bundle": "make one file with everything that a bare node needs",
    "cvmfs": "run a command in cvmfsexec, where signals reach it",
    "config": "check the configuration, and show what is in force",
    "doctor": "find out what this node allows, and what to ask its admins for",
    "demo": "run a real HTCondor job on a simulated node that can reach nothing",
    "testbed": "run a command on the simulated site",
}


class _Parser(argparse.ArgumentParser):
    #: Set in the parser of the whole command, which finds unknown options: the noun whose help has the options.
    noun = ""

    def error(self, message: str) -> None:  # type: ignore[override]
        prog = f"{self.prog} {self.noun}".rstrip()
        verb = prog.partition(" ")[2]
        raise UsageError(f"{verb}: {message}" if verb else message, f"see `{prog} --help`")


def parser_for(noun: str | None) -> argparse.ArgumentParser:
    """Builds the parser; only the module of `noun`, if it is one, adds its arguments."""
    parser = _Parser(prog="htcondor-vpn", description="A network for HTCondor jobs on nodes that have none.")
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True)
    for name, text in NOUNS.items():
        file = name.replace("-", "_")
        if not Path(__file__).with_name(f"{file}.py").exists():
            continue  # a bundle has what a node needs only
        sub = nouns.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == noun:
            parser.noun = name
            module = importlib.import_module(f"htcondor_vpn.cli.{file}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; an error is one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        noun = next((word for word in argv if not word.startswith("-")), None)
        args = parser_for(noun).parse_args(argv)
        return int(args.run(args))
    except VpnError as error:
        print(f"htcondor-vpn: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
