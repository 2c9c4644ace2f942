"""`htcondor-vpn glidein VERB`: pilots and glideins by hand, and from a factory."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from htcondor_vpn.cli import tunnel_options
from htcondor_vpn.cli.output import say
from htcondor_vpn.errors import UsageError
from htcondor_vpn.glidein.batch_script import Batch, script
from htcondor_vpn.glidein.condor_pilot import PilotFolder, Wanted
from htcondor_vpn.glidein.credentials import check_jwt
from htcondor_vpn.glidein.factory.entry import render
from htcondor_vpn.glidein.factory.site import read_site
from htcondor_vpn.glidein.hold import hold
from htcondor_vpn.glidein.manual import check
from htcondor_vpn.linux.signals import die_like, raised
from htcondor_vpn.pilot.run_folder import ENVIRONMENT_VARIABLE
from htcondor_vpn.pilot.supervisor import ENDING, Interrupted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text, add, do in (
        ("condor", "start an HTCondor pilot of one's own, without GlideinWMS", _condor_arguments, _condor),
        ("hold", "keep a tunnel for a glidein that is there (for htvpn-setup)", _hold_arguments, _hold),
        ("manual", "write the batch script for what manual_glidein_startup wrote", _manual_arguments, _manual),
        ("factory-entry", "write a factory's XML for a site", _factory_entry_arguments, _factory_entry),
        ("check-factory", "look for mistakes in a factory's XML", _check_factory_arguments, _check_factory),
    ):
        verb = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add(verb)
        verb.set_defaults(run_verb=do)


def _condor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--condor", required=True, type=Path, metavar="PATH", help="HTCondor's folder or tarball")
    parser.add_argument("--pool", required=True, metavar="HOST[:PORT]", help="the pool's collector")
    parser.add_argument("--idtoken", required=True, type=Path, metavar="FILE", help="the token for that pool (0600)")
    parser.add_argument("--name", default="", help="the pilot's name; default: a new one each time")
    parser.add_argument("--cpus", type=int, default=0, metavar="N", help="what it offers; default: all")
    parser.add_argument("--memory-mb", type=int, default=0, metavar="N", help="what it offers; default: all")
    parser.add_argument(
        "--lead", type=int, default=300, metavar="SECONDS",
        help="how long it may take to end, from SIGTERM on (default: 300)",
    )  # fmt: skip
    parser.add_argument(
        "--lifetime", type=int, default=0, metavar="SECONDS",
        help="end by itself within this time, for batch systems that send no signal",
    )  # fmt: skip
    parser.add_argument(
        "--condor-config", action="append", default=[], type=Path, metavar="FILE", help="more configuration of HTCondor"
    )
    tunnel_options.add_arguments(parser)


def _manual_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command_file", type=Path, metavar="FILE", help="what manual_glidein_startup wrote")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="SCRIPT", help="the script to write")
    parser.add_argument(
        "--batch", choices=[batch.value for batch in Batch], default=Batch.SLURM.value,
        help="the batch system (default: slurm)",
    )  # fmt: skip
    parser.add_argument("--bundle", required=True, type=Path, metavar="FILE", help="from `htcondor-vpn bundle`")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the site's knobs")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the pilot's token; or it is in the knobs")
    parser.add_argument(
        "--credential", action="append", default=[], type=Path, metavar="FILE",
        help="a credential for the pool (0600), such as credential_….idtoken",
    )  # fmt: skip
    parser.add_argument("--time", type=float, default=24, metavar="HOURS", help="the job's time (default: 24)")
    parser.add_argument(
        "--lead", type=int, default=300, metavar="SECONDS", help="how long the glidein may take to end (default: 300)"
    )
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="what to ask for (default: 1)")
    parser.add_argument(
        "--directive", action="append", default=[], metavar="WORDS", help="more for the batch system, as `-p long`"
    )


def _hold_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", type=int, metavar="PID", help="the glidein's process: the tunnel ends with it")


def run(args: argparse.Namespace) -> int:
    return int(args.run_verb(args))


def _condor(args: argparse.Namespace) -> int:
    if args.lead < 1 or args.lifetime < 0 or 0 < args.lifetime <= args.lead:
        raise UsageError("--lead must be positive, and --lifetime longer than it", "--lead 300 --lifetime 86400")
    check_jwt(args.idtoken, args.lifetime or args.lead)
    wanted = Wanted(
        condor=args.condor, pool=args.pool, idtoken=args.idtoken, lead_seconds=args.lead,
        lifetime_seconds=args.lifetime, name=args.name, cpus=args.cpus, memory_mb=args.memory_mb,
        config=args.condor_config,
    )  # fmt: skip
    try:
        with raised(ENDING, Interrupted), PilotFolder(wanted) as folder:  # to unpack HTCondor takes seconds
            environment = folder.environment(os.environ)
            settings = tunnel_options.settings_of(args, environment)
            status = tunnel_options.status_of(settings, folder.argv, environment, args.verbose, [folder.temporary])
    except Interrupted as interrupted:
        die_like(interrupted.number)
        raise
    return tunnel_options.end_like(PilotFolder.status(status))


def _hold(args: argparse.Namespace) -> int:
    run_dir = os.environ.get(ENVIRONMENT_VARIABLE)
    if not run_dir:
        raise UsageError("there is no tunnel to keep", "htcondor-vpn run … -- htcondor-vpn glidein hold PID")
    namespace = os.readlink("/proc/self/ns/user")
    hold(args.pid, lambda: say(f"up {os.getpid()} {namespace} {run_dir}"))
    return 0


def _manual(args: argparse.Namespace) -> int:
    seconds = int(args.time * 3600)
    if not 0 < args.lead < seconds or args.cpus < 1:
        raise UsageError("--lead and --cpus must be positive, and --time longer than --lead", "--time 24 --lead 300")
    glidein = check(args.command_file, args.bundle, args.config, args.token_file, args.credential, seconds)
    for warning in glidein.warnings:
        print(f"htcondor-vpn: note: {warning}", file=sys.stderr)
    job = glidein.job(time_seconds=seconds, lead_seconds=args.lead, cpus=args.cpus, directives=args.directive)
    batch = Batch(args.batch)
    try:
        args.output.write_text(script(batch, job), encoding="utf-8")
        args.output.chmod(0o755)
    except OSError as error:
        raise UsageError(f"{args.output} cannot be written: {error.strerror}", "name another file") from error
    say(f"{args.output}: {'sbatch' if batch is Batch.SLURM else 'qsub'} {args.output}")
    return 0


def _factory_entry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("site", type=Path, metavar="FILE", help="the site's description")


def _factory_entry(args: argparse.Namespace) -> int:
    say(render(read_site(args.site)).rstrip())
    return 0


def _check_factory_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="XML", help="the factory's configuration, glideinWMS.xml")
    parser.add_argument("--entry", metavar="NAME", help="this entry alone, which has to have a tunnel")


def _check_factory(args: argparse.Namespace) -> int:
    # A bundle's own Python cannot read XML, and on a node nobody has to.
    from htcondor_vpn.glidein.factory.check import check as check_factory
    from htcondor_vpn.glidein.factory.document import read_document

    checked = check_factory(read_document(args.file), args.entry)
    for finding in checked.findings:
        say(f"{args.file}:{finding.line}: {finding.cause}: {finding.remedy}")
    if not checked.findings:
        entries = ", ".join(f"{name} ({way.value})" for name, way in checked.entries.items()) or "none"
        say(f"{args.file}: no mistake was found; entries with a tunnel: {entries}")
    return 1 if checked.findings else 0
