"""`htcondor-vpn status`: what the pilots of this user say of their tunnels."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from htcondor_vpn.cli.output import plain, say
from htcondor_vpn.publish.state import State, run_folders

#: The exit codes are those that the Linux Standard Base gives to `status`: 3 is "not running", 4 "unknown".
UP, NOT_UP, UNKNOWN = 0, 3, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="FOLDER",
        help="a run folder (default: HTCONDOR_VPN_RUN_DIR, else all htcondor-vpn-* of yours under $TMPDIR or /tmp)",
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of text")
    parser.epilog = f"Exit code: {UP} if every tunnel is up, {NOT_UP} if one is not, {UNKNOWN} if nobody can tell."


def run(args: argparse.Namespace) -> int:
    """Prints the state of each pilot found; returns an exit code as above."""
    folders = [args.run_dir] if args.run_dir else run_folders(os.environ)
    reports = [_report(folder) for folder in folders]
    if args.json:
        say(json.dumps(reports, indent=1))
    elif not reports:
        say("no pilot of yours was found; --run-dir FOLDER names one")
    else:
        say("\n\n".join(_text(report, time.time()) for report in reports))
    if not reports or any(report["state"] == "unknown" for report in reports):
        return UNKNOWN
    return UP if all(report["state"] == "up" for report in reports) else NOT_UP


def _report(folder: Path) -> dict[str, Any]:
    try:
        state = State.read(folder)
    except OSError as error:
        return {"run_dir": str(folder), "state": "unknown", "reason": f"state.json: {error.strerror}"}
    except ValueError as error:
        return {"run_dir": str(folder), "state": "unknown", "reason": f"state.json is damaged: {error}"}
    report = {"run_dir": str(folder), **asdict(state), "state": state.word()}
    if report["state"] != state.state:
        report["reason"] = "its supervisor " + ("is gone" if report["state"] == "stopped" else "has fallen silent")
    return report


def _text(report: dict[str, Any], now: float) -> str:
    reason = f" ({plain(report['reason'])})" if report["reason"] else ""
    lines = [f"{plain(report['run_dir'])}: {report['state']}{reason}"]
    if "pid" in report:
        names = ", ".join(report["families"]) or "nothing yet"
        over = f" over {report['transport'].upper()}" if report["transport"] else ""
        engine = f"{report['engine'] or 'unknown'} engine{over}"
        lines += [
            f"  gateway  {report['gateway'] or 'none'} by the {engine}, carries {names}",
            f"  since    {_moment(report['since'])} ({_duration(now - report['since'])})",
            f"  latency  {_number(report['latency_ms'], 'ms')}",
            f"  rate     {_number(report['up_mbps'], 'Mbit/s')} up, {_number(report['down_mbps'], 'Mbit/s')} down",
            f"  bytes    {report['bytes_in']} in, {report['bytes_out']} out",
            f"  jobs     {report['jobs']} with a network, {report['flows']} flows",
            f"  process  {report['pid']}",
            *(map(_gateway, report["gateways"]) if len(report["gateways"]) > 1 else ()),
            *map(_route, report["routes"]),
        ]
    return "\n".join(lines)


def _gateway(gateway: dict[str, Any]) -> str:
    if not gateway["up"]:
        return f"  by       {plain(gateway['name'])}, down: {plain(gateway['reason'])}"
    return f"  by       {plain(gateway['name'])}, load {gateway['load']:.2f}{', draining' * gateway['draining']}"


def _route(route: dict[str, Any]) -> str:
    reason = "" if route["up"] else f", down: {plain(route['reason'])}"
    return f"  route    {plain(route['to'])} {plain(route['by'])}, {route['flows']} flows{reason}"


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock


def _number(value: float | None, unit: str) -> str:
    return "not known" if value is None else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
