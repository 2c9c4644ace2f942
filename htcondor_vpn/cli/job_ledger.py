"""`htcondor-vpn job list|show`: what jobs have moved, and whom they talked to; now, and by the ledgers."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from htcondor_vpn.cli.output import date, plain, print_table, say, size
from htcondor_vpn.config_sources import config_files
from htcondor_vpn.errors import JobNotFound, LedgerUnreadable, UsageError
from htcondor_vpn.jobnet.counting.jobs_file import FILE as LIVE_FILE
from htcondor_vpn.jobnet.counting.ledger import FILE, read, read_live
from htcondor_vpn.publish.state import run_folders
from htcondor_vpn.settings import Settings


def add_arguments(nouns: Any) -> None:
    """Adds `list` and `show` to the nouns of `job`."""
    listed = nouns.add_parser("list", help="list jobs with a network, the running ones first")
    listed.add_argument("--limit", type=_count, default=50, metavar="N", help="no more than so many jobs (default 50)")
    listed.set_defaults(act=_list)
    shown = nouns.add_parser("show", help="say all of one job: bytes by class, rates, and whom it talked to")
    shown.add_argument("job", metavar="JOB", help="a GlobalJobId or a part of it that no other has, as `#12.0#`")
    shown.set_defaults(act=_show)
    for parser in (listed, shown):
        parser.add_argument(
            "--ledger",
            type=Path,
            metavar="PATH",
            help="a ledger or a folder of them (default: those of your pilots' run folders, of an execution point that "
            "root runs here, and of the folder that the knob HTCONDOR_VPN_JOB_LEDGER_DIR names)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"a number from 1 on, not {text!r}")
    return int(text)


def _list(args: argparse.Namespace) -> int:
    jobs = _jobs(args.ledger, limit=args.limit)[: args.limit]
    if args.json:
        say(json.dumps(jobs, indent=1))
        return 0
    rows = [("STARTED", "JOB", "SLOT", "STATE", "IN", "OUT", "CONNECTIONS", "PEAK IN", "PEAK OUT")]
    rows += [
        (
            date(job["started"]),
            plain(job["job"]) or "?",
            plain(job["slot"]) or "?",
            _state(job),
            size(job["bytes_in"]),
            size(job["bytes_out"]),
            str(job["connections"]),
            f"{job['peak_in_mbps']:.1f} Mbit/s",
            f"{job['peak_out_mbps']:.1f} Mbit/s",
        )
        for job in jobs
    ]
    print_table(rows)
    return 0


def _show(args: argparse.Namespace) -> int:
    jobs = _jobs(args.ledger, args.job)
    remedy = "`htcondor-vpn job list` lists them"
    if not jobs:
        raise JobNotFound(f"no job has {args.job!r} in its name", remedy)
    if (names := len({job["job"] for job in jobs})) > 1:
        raise UsageError(f"{names} jobs have {args.job!r} in their names", remedy)
    say(json.dumps(jobs, indent=1) if args.json else "\n\n".join("\n".join(_told(job)) for job in jobs))
    return 0


def _jobs(ledger: Path | None, name: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """Running jobs as they are now, then the others, the last first; a job that ran twice is there twice."""
    found: dict[tuple[float, int], dict[str, Any]] = {}
    for path in _ledgers(ledger):
        try:
            found.update({(job["started"], job["number"]): job for job in read(path, name, limit)})
        except (sqlite3.Error, ValueError) as error:
            cause = f"the ledger {path} cannot be read: {error}"
            raise LedgerUnreadable(cause, "name another one by --ledger, or remove it") from error
    if ledger is None:
        for folder in _folders(_settings()):
            found.update({(job["started"], job["number"]): job for job in _running(folder) if name in job["job"]})
    return sorted(found.values(), key=lambda job: (job["ended"] is None, job["started"]), reverse=True)


def _running(folder: Path) -> list[dict[str, Any]]:
    try:
        return [job for job in read_live(folder / LIVE_FILE) if job["ended"] is None]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise LedgerUnreadable(f"{folder / LIVE_FILE} cannot be read: {error}", "ask again in a second") from error


def _ledgers(ledger: Path | None) -> Iterator[Path]:
    if ledger is not None:
        if not ledger.exists():
            raise LedgerUnreadable(f"there is no {ledger}", "name a ledger, or a folder of them")
        yield from sorted(ledger.glob("jobs*.db")) if ledger.is_dir() else [ledger]
        return
    settings = _settings()
    for folder in _folders(settings):
        yield from _existing([folder / FILE])
    if settings.job_ledger_dir is not None:
        yield from _existing(sorted(settings.job_ledger_dir.glob("jobs*.db")))


def _settings() -> Settings:
    return Settings.load(config_files([], os.environ).files, os.environ)


def _folders(settings: Settings) -> Iterator[Path]:
    """Where brokers of ours keep their books: pilots, and an execution point, whose books are root's alone."""
    yield from run_folders(os.environ)
    point: Path = settings.execution_point_dir
    if os.access(point / LIVE_FILE, os.R_OK):
        yield point


def _existing(paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in paths if path.exists())


def _state(job: dict[str, Any]) -> str:
    return "running" if job["ended"] is None else plain(job["outcome"])


def _told(job: dict[str, Any]) -> Iterator[str]:
    until = "" if job["ended"] is None else f" to {date(job['ended'])}"
    yield f"{plain(job['job']) or 'a job without a name'}, {_state(job)}"
    yield f"  slot         {plain(job['slot']) or 'not known'}, by the rule {plain(job['rule'])}"
    yield f"  time         {date(job['started'])}{until}"
    for name, way in (("received", "in"), ("sent", "out")):
        yield (
            f"  {name:<12} {size(job[f'bytes_{way}'])} in {job[f'packets_{way}']} packets, "
            f"mean {job[f'mean_{way}_mbps']:.1f}, peak {job[f'peak_{way}_mbps']:.1f} Mbit/s"
        )
    resent = "not known" if job["resent_segments"] is None else job["resent_segments"]
    yield f"  connections  {job['connections']} established, {resent} segments sent again"
    for name, moved in job["classes"].items():
        received, sent = size(moved["received_bytes"]), size(moved["sent_bytes"])
        yield f"  class        {plain(name)}: {received} received, {sent} sent, {moved['connections']} connections"
    flights = job["flights"]
    for each in flights["destinations"]:
        silent = "" if each["packets_in"] else ", never answered"
        yield (
            f"  talked to    {_where(each)}, {plain(each['class_name'])}: "
            f"{size(each['bytes_in'])} received, {size(each['bytes_out'])} sent{silent}"
        )
    others = flights["others"]
    if others["destinations"]:
        received, sent = size(others["bytes_in"]), size(others["bytes_out"])
        yield f"  talked to    {others['destinations']} others: {received} received, {sent} sent"
    for each in flights["refused"]:
        yield f"  refused      {_where(each)}: {plain(each['reason'])}, {each['attempts']} packets"
    if others["refused"]:
        yield f"  refused      {others['refused']} packets to others"


def _where(each: dict[str, Any]) -> str:
    name = f" ({plain(each['name'])})" if each["name"] else ""
    return f"{plain(each['address'])}{name} {plain(each['protocol'])} port {each['port']}"
