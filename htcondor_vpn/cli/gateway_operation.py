"""`htcondor-vpn gateway status`, `ledger`, `drain` and `restart`: asks a running gateway, and tells it what to do."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from htcondor_vpn import knob_values
from htcondor_vpn.cli.output import print_table, say, size
from htcondor_vpn.errors import GatewayNotRunning, UsageError
from htcondor_vpn.settings import Settings

_RESTART_SECONDS = 90.0
_LOOK_AGAIN_SECONDS = 0.05


def add_verbs(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    add_common: Callable[[argparse.ArgumentParser, object], None],
) -> None:
    """Adds the verbs; `add_common` adds the options that all verbs of a gateway have."""
    status = verbs.add_parser("status", help="show what the running gateway carries")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(act=_status)
    drain = verbs.add_parser("drain", help="begin no flow any more, and end when the last one has ended")
    drain.add_argument("--timeout", metavar="TIME", help="cut what is left after this, such as 2h (default: never)")
    drain.add_argument("--wait", action="store_true", help="return when the gateway has ended")
    drain.set_defaults(act=_drain)
    restart = verbs.add_parser("restart", help="take over new code, settings and certificate without losing a flow")
    restart.set_defaults(act=_restart)
    ledger = verbs.add_parser("ledger", help="sum up what pilots carried")
    ledger.add_argument("--since", metavar="TIME", help="flows begun since then: 7d (ago), or 2026-11-20 (UTC)")
    ledger.add_argument("--pilot", metavar="NAME", default="", help="of this pilot only")
    ledger.add_argument("--by", choices=("pilot", "destination", "outcome"), default="pilot", help="default: pilot")
    ledger.add_argument("--json", action="store_true", help="as JSON")
    ledger.set_defaults(act=_ledger)
    unit = verbs.add_parser("systemd-unit", help="print a hardened systemd unit for a gateway with this folder")
    unit.add_argument("--user", metavar="NAME", default="htcondor-vpn", help="the account (default: htcondor-vpn)")
    unit.set_defaults(act=_unit)
    for verb in (status, drain, restart, ledger, unit):
        add_common(verb, argparse.SUPPRESS)


def _status(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.operation.control import Connection

    with Connection(settings.gateway_dir) as gateway:
        status = gateway.ask({"do": "status"})
    if args.json:
        say(json.dumps(status, indent=2))
        return 0
    packets = status.get("kind", "stream") != "stream"
    what = "sessions" if packets else "flows"
    state = "stopping" if status["stopping"] else "draining" if status["draining"] else "serving"
    load, room = ("", "") if packets else (f", load {status['load']:.2f}", _room(status))
    say(
        f"{state} for {_duration(status['uptime_seconds'])}, version {status['version']}, process {status['pid']}"
        f"{load}\n"
        f"{status['flows']} {what} ({status['flows_ended']} have ended){room}\n"
        f"up {status['up_mbps']:.1f} Mbit/s, down {status['down_mbps']:.1f} Mbit/s; "
        f"since the start {size(status['bytes_up'])} up, {size(status['bytes_down'])} down"
    )
    for worker in status["workers"]:
        last = ", its flows are its last" if worker["retired"] else ""
        say(
            f"worker {worker['pid']}: {worker['flows']} flows, load {worker['load']:.2f}, "
            f"{size(worker['memory_bytes'])}{last}"
        )
    ledger = status["ledger"]
    if ledger is not None and (ledger["error"] or ledger["lost"]):
        say(f"ledger: {ledger['waiting']} records wait, {ledger['lost']} were lost {ledger['error']}".rstrip())
    rows = [
        (name, str(count["flows"]), f"{count['up_mbps']:.1f}", f"{count['down_mbps']:.1f}",
         size(count["bytes_up"]), size(count["bytes_down"]))
        for name, count in status["pilots"].items()
    ]  # fmt: skip
    print_table([("PILOT", what.upper(), "UP Mbit/s", "DOWN Mbit/s", "SENT", "RECEIVED"), *rows])
    return 0


def _room(status: dict[str, Any]) -> str:
    limits = status["limits"]
    return (
        f" on {status['connections']} of at most {limits['connections']} connections, "
        f"{limits['connections_per_token']} a pilot"
    )


def _drain(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.operation.control import Connection

    request: dict[str, Any] = {"do": "drain"}
    if args.timeout is not None:
        try:
            request["timeout_seconds"] = knob_values.quantity(knob_values.UNITS_OF_TIME, 0, 365 * 86400)(args.timeout)
        except ValueError as error:
            raise UsageError(f"--timeout {args.timeout}: the value {error}", "write it as 30min or 2h") from error
    with Connection(settings.gateway_dir) as gateway:
        answer = gateway.ask(request)
        if "error" in answer:
            raise GatewayNotRunning(f"the gateway goes on as it was: {answer['error']}", "mend that, and try again")
        say(f"{answer['flows']} {answer.get('what', 'flows')} go on")
        if args.wait:
            gateway.ended()
    return 0


def _restart(_args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.operation.control import Connection

    deadline = time.monotonic() + _RESTART_SECONDS
    with Connection(settings.gateway_dir) as gateway:
        before = gateway.ask({"do": "status"})
        refusal = gateway.tell({"do": "restart"}, _RESTART_SECONDS)
    if refusal is not None:
        raise GatewayNotRunning(f"the gateway goes on as it was: {refusal['error']}", "mend that, and try again")
    while time.monotonic() < deadline:  # the new program listens once it serves
        with contextlib.suppress(GatewayNotRunning), Connection(settings.gateway_dir) as gateway:
            after = gateway.ask({"do": "status"})
            if after["pid"] != before["pid"]:
                break
            if after["generation"] > before["generation"]:
                flows = sum(worker["flows"] for worker in after["workers"])
                say(f"version {after['version']} serves; {flows} flows go on")
                return 0
        time.sleep(_LOOK_AGAIN_SECONDS)
    raise GatewayNotRunning("the new program did not take over, and the flows were lost", "see the gateway's log")


def _ledger(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.operation.ledger import sums

    rows = sums(settings.gateway_dir, args.by, _since(args.since), args.pilot)
    if args.json:
        say(json.dumps(rows, indent=2))
        return 0
    heads = {"flows": "FLOWS", "bytes_up": "SENT", "bytes_down": "RECEIVED"}
    names = ["pilot", "destination"] if args.by == "destination" else [args.by]
    table = [(*(name.upper() for name in names), *heads.values())]
    for row in rows:
        sizes = size(row["bytes_up"]), size(row["bytes_down"])
        table.append((*(row[name] or "(running)" for name in names), str(row["flows"]), *sizes))
    print_table(table)
    return 0


def _unit(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.service_manager import unit

    script = Path(sys.argv[0]).absolute()
    program = [str(script)] if script.name == "htcondor-vpn" else [sys.executable, "-m", "htcondor_vpn.cli.main"]
    say(unit(settings, args.user, program, args.config and args.config.absolute()).rstrip())
    return 0


def _since(text: str | None) -> float:
    if text is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return time.time() - float(knob_values.quantity(knob_values.UNITS_OF_TIME, 0, 36500 * 86400)(text))
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except ValueError:
        raise UsageError(f"--since {text} is no time", "write it as 12h, 7d, or 2026-11-20") from None


def _duration(seconds: float) -> str:
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
