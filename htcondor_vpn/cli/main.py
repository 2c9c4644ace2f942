"""The `htcondor-vpn` command: one module a noun, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from htcondor_vpn.errors import UsageError, VpnError

NOUNS = {
    "run": "run a command in a network namespace whose only way out is the tunnel",
    "gateway": "run a gateway, and manage the tokens of its pilots",
    "status": "show the state of a running pilot's tunnel",
    "config": "check the configuration, and show what is in force",
    "demo": "run a real HTCondor job on a simulated node that can reach nothing",
    "testbed": "run a command on the simulated site",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{self.prog}: {message}", f"see `{self.prog} --help`")


def parser_for(noun: str | None) -> argparse.ArgumentParser:
    """Builds the parser; only the module of `noun`, if it is one, adds its arguments."""
    parser = _Parser(prog="htcondor-vpn", description="A network for HTCondor jobs on nodes that have none.")
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True)
    for name, text in NOUNS.items():
        sub = nouns.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == noun:
            module = importlib.import_module(f"htcondor_vpn.cli.{name}")
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
