"""`htcondor-vpn testbed`: the simulated site, to look around there by hand or to try something out."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from htcondor_vpn.errors import UsageError
from htcondor_vpn.testbed import sandbox
from htcondor_vpn.testbed.commands import write_commands
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import DMZ, NODE, WORLD, Site


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `run` and `shell` with their options to the parser of `testbed`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    run_parser = verbs.add_parser(
        "run",
        help="run a command while a simulated site is up",
        description="Run COMMAND while a simulated site is up, the world's services included. COMMAND finds the "
        "commands `node`, `dmz` and `world` on its PATH, which run a command on that host as an ordinary user, and "
        "`htcondor-vpn`; `ip -n node …` and so on show the hosts' networks.",
    )
    run_parser.add_argument("--on", choices=(NODE, DMZ, WORLD), help="run COMMAND itself on this host")
    _add_link_arguments(run_parser)
    run_parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="command and arguments")
    run_parser.set_defaults(run_verb=_run)
    shell_parser = verbs.add_parser(
        "shell",
        help="a shell on a simulated site where a gateway and a pool run",
        description="A shell, as `run -- bash` has one, on a site where a gateway runs in the DMZ and an HTCondor pool "
        "in the world; HTCondor's commands are there, too. It has a home folder of its own, with what a pilot needs.",
    )
    _add_link_arguments(shell_parser)
    shell_parser.set_defaults(run_verb=_shell)


def _add_link_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate-mbps", type=float, help="rate of the node's link each way, Mbit/s")
    parser.add_argument("--delay-ms", type=float, default=0, help="delay of the node's link one way, ms")
    parser.add_argument("--loss", type=float, default=0, help="loss on the node's link each way, 0 to 1")
    parser.add_argument("--default-route", action="store_true", help="give the node a route that leads nowhere")


def run(args: argparse.Namespace) -> int:
    """Runs COMMAND, or the shell, and returns its exit code, 128 + n if signal n ended it."""
    return int(args.run_verb(args))


def _run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("testbed run: there is no command to run", "put it after `--`")
    if not sandbox.inside():
        return _enter()
    with _site(args) as site, WorldServices(site):
        folder = write_commands(site)
        on = [str(folder / args.on)] if args.on else []
        return _execute([*on, *command], {"PATH": f"{folder}:{os.environ.get('PATH', os.defpath)}"})


def _shell(args: argparse.Namespace) -> int:
    from htcondor_vpn.testbed import by_hand, condor_prefix  # what these need, `run` does without

    if not sandbox.inside():
        condor_prefix.prefix()  # there is no network in the sandbox from which it could be fetched
        return _enter()
    with ExitStack() as exits:
        site = exits.enter_context(_site(args))
        exits.enter_context(WorldServices(site))
        folder = write_commands(site)
        home = exits.enter_context(by_hand.furnished(site, folder))
        os.chdir(home)
        if sys.stdin.isatty():
            print(by_hand.GREETING, flush=True)
        path = f"{folder}:{os.environ.get('PATH', os.defpath)}"
        return _execute(["bash"], {"PATH": path, "HOME": str(home)})


def _enter() -> int:
    return sandbox.exec_inside([sys.executable, "-m", "htcondor_vpn.cli.main", *sys.argv[1:]])


def _site(args: argparse.Namespace) -> Site:
    return Site(args.rate_mbps, args.delay_ms, args.loss, default_route=args.default_route)


def _execute(command: Sequence[str], environment: Mapping[str, str]) -> int:
    code = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    return code if code >= 0 else 128 - code
