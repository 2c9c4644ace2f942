"""`htcondor-vpn testbed`: a command on the simulated site, to look around there by hand or to try something out."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from htcondor_vpn.errors import UsageError
from htcondor_vpn.testbed import sandbox
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import DMZ, NODE, WORLD, Site


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `run` with its options to the parser of `testbed`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    run_parser = verbs.add_parser(
        "run",
        help="run a command while a simulated site is up",
        description="Run COMMAND while a simulated site is up, the world's services included. COMMAND finds the "
        "commands `node`, `dmz` and `world` on its PATH, which run a command on that host as an ordinary user, and "
        "`htcondor-vpn`; `ip -n node …` and so on show the hosts' networks.",
    )
    run_parser.add_argument("--on", choices=(NODE, DMZ, WORLD), help="run COMMAND itself on this host")
    run_parser.add_argument("--rate-mbps", type=float, help="rate of the node's link each way, Mbit/s")
    run_parser.add_argument("--delay-ms", type=float, default=0, help="delay of the node's link one way, ms")
    run_parser.add_argument("--loss", type=float, default=0, help="loss on the node's link each way, 0 to 1")
    run_parser.add_argument("--default-route", action="store_true", help="give the node a route that leads nowhere")
    run_parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="command and arguments")


def run(args: argparse.Namespace) -> int:
    """Runs COMMAND and returns its exit code, 128 + n if signal n ended it."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("testbed run: there is no command to run", "put it after `--`")
    if not sandbox.inside():
        return sandbox.exec_inside([sys.executable, "-m", "htcondor_vpn.cli.main", *sys.argv[1:]])
    with Site(args.rate_mbps, args.delay_ms, args.loss, default_route=args.default_route) as site:
        with WorldServices(site):
            folder = _launchers(site)
            environ = {**os.environ, "PATH": f"{folder}:{os.environ.get('PATH', os.defpath)}"}
            if args.on:
                command = [str(folder / args.on), *command]
            code = subprocess.run(command, env=environ, check=False).returncode
    return code if code >= 0 else 128 - code


def _launchers(site: Site) -> Path:
    """Writes a command for each host that runs what it is given there, and `htcondor-vpn`; returns their folder."""
    folder = site.folder / "bin"
    folder.mkdir()
    own = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m htcondor_vpn.cli.main "$@"\n'
    launchers = {host.name: host.launcher() for host in (site.node, site.dmz, site.world)}
    for name, text in {**launchers, "htcondor-vpn": own}.items():
        launcher = folder / name
        launcher.write_text(text)
        launcher.chmod(0o755)
    return folder
