"""Tells the startd how the tunnel is: a STARTD_CRON job that runs on, and prints the slot's `Vpn*` attributes.

It is copied into the run folder as `libexec/advertise`, runs as `python -I` there and finds the run folder from its own
path: so it is one file and needs the standard library alone. Nothing of state.json is believed: a value that is not
what it should be makes the state "unknown", and every line printed is `Name = literal`.

A change of state is printed at once with `- update:true`, which makes the startd send the slots' ads at once too
(whatever STARTD_CRON_AUTOPUBLISH says). Numbers change all the time: they go to the startd every few seconds, and from
there with its next ordinary update, so that a large pool's collector does not pay for them.

HTCondor 23 sends only the startd's own ad on `update:true`, not the slots' (seen with 23.9.6; 25.14.1 sends both). With
`--reconfigure` this program therefore sends the startd a SIGHUP each time: then all ads go out.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import signal
import sys
import time
from typing import Any, NamedTuple

STATE_FILE = "state.json"
JOBS_FILE = "jobs.json"
VERSION = 1
STATES = ("starting", "connecting", "up", "down", "stopping", "stopped", "failed")

#: The supervisor writes state.json anew at least every few seconds; one older than this has nobody behind it.
STALE_SECONDS = 30.0
POLL_SECONDS = 0.5
REFRESH_SECONDS = 10.0
MAX_STATE_BYTES = 65536
MAX_JOBS_BYTES = 1 << 24
MAX_INTEGER = 2**63 - 1  # a ClassAd's integers have 64 bits

#: What ends an ad: the startd sends it with its next update, or at once.
IN_TIME = "-\n"
AT_ONCE = "- update:true\n"

Fields = dict[str, Any]


class Attribute(NamedTuple):
    """One slot attribute: its name, the field of state.json it comes from, ClassAd type, unit and text."""

    name: str
    field: str
    type: str
    unit: str
    text: str


ATTRIBUTES = (
    Attribute(
        "VpnState",
        "state",
        "string",
        "",
        """`up` if the tunnel carries traffic, else `starting`, `connecting`, `down`, `stopping`, `stopped` or `failed`;
        `unknown` if nobody keeps state.json any more or it cannot be read; `absent` if HTCondor was not started by
        `htcondor-vpn run`.""",
    ),
    Attribute("VpnEngine", "engine", "string", "", "How traffic gets to the gateway, for example `stream`."),
    Attribute("VpnGateway", "gateway", "string", "", "The gateway in use, HOST:PORT."),
    Attribute("VpnUpMbps", "up_mbps", "real", "Mbit/s", "Bandwidth towards the gateway; only while the tunnel is up."),
    Attribute("VpnDownMbps", "down_mbps", "real", "Mbit/s", "Bandwidth towards the node; only while the tunnel is up."),
    Attribute(
        "VpnLatencyMs",
        "latency_ms",
        "real",
        "ms",
        "Time of the last probe to the gateway and back; only while the tunnel is up.",
    ),
    Attribute("VpnBytesIn", "bytes_in", "integer", "bytes", "Payload received from the gateway since the pilot began."),
    Attribute("VpnBytesOut", "bytes_out", "integer", "bytes", "Payload sent to the gateway since the pilot began."),
    Attribute("VpnSince", "since", "integer", "unix s", "When the present state began."),
)

#: What a slot says of the job in it, by the fields of `Observer.jobs`; undefined without a job that has a network.
JOB_ATTRIBUTES = (
    Attribute("VpnJobBytesIn", "bytes_in", "integer", "bytes", "What the slot's job has received so far."),
    Attribute("VpnJobBytesOut", "bytes_out", "integer", "bytes", "What the slot's job has sent so far."),
    Attribute("VpnJobConnections", "connections", "integer", "", "Connections that the slot's job has had."),
    Attribute("VpnJobPeakMbpsIn", "peak_in_mbps", "real", "Mbit/s", "Its highest rate of receiving, over 5 s."),
    Attribute("VpnJobPeakMbpsOut", "peak_out_mbps", "real", "Mbit/s", "Its highest rate of sending, over 5 s."),
)

#: How packets travel, with an engine that sends packets.
TRANSPORTS = ("", "dtls", "tls")

#: These have no meaning while the tunnel is not up.
ONLY_WHILE_UP = ("up_mbps", "down_mbps", "latency_ms")

# Neither of these lets a quote, a backslash or a line's end through: a string literal then needs no escaping, which
# HTCondor's old and new ClassAd syntax do differently.
_ENGINE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_SLOT = re.compile(r"slot[0-9]{1,6}(?:_[0-9]{1,6})?")
_GATEWAY = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


def parse_state(text: str) -> Fields:
    """Returns the fields of state.json, each checked; raises ValueError that says what is wrong with which."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"it is not a state of version {VERSION}")
    fields: Fields = {
        "version": VERSION,
        "pid": _integer(document, "pid", 1, 2**31 - 1),
        "state": _word(document, "state", STATES),
        "since": _number(document, "since", 0, MAX_INTEGER),
        "engine": _text(document, "engine", _ENGINE),
        "gateway": _text(document, "gateway", _GATEWAY),
        "latency_ms": _number(document, "latency_ms", 0, 1e9, optional=True),
        "up_mbps": _number(document, "up_mbps", 0, 1e9, optional=True),
        "down_mbps": _number(document, "down_mbps", 0, 1e9, optional=True),
        "bytes_in": _integer(document, "bytes_in", 0, MAX_INTEGER),
        "bytes_out": _integer(document, "bytes_out", 0, MAX_INTEGER),
        "flows": _integer(document, "flows", 0, MAX_INTEGER),
        "jobs": _integer(document, "jobs", 0, MAX_INTEGER, default=0),
        "reason": document.get("reason", ""),
        "families": document.get("families"),
        "transport": _word(document, "transport", TRANSPORTS, default=""),
        "holds_connects": document.get("holds_connects", False),
        "gateways": [_gateway(gateway) for gateway in document.get("gateways", ())],
        "routes": [_route(route) for route in document.get("routes", ())],
        "updated": _number(document, "updated", 0, MAX_INTEGER),
    }
    if not isinstance(fields["reason"], str):
        raise ValueError("reason is no text")
    if not isinstance(fields["holds_connects"], bool):
        raise ValueError("holds_connects is neither true nor false")
    families = fields["families"]
    if not isinstance(families, list) or any(family not in ("ipv4", "ipv6") for family in families):
        raise ValueError("families is not a list of ipv4 and ipv6")
    return fields


def _gateway(gateway: Any) -> Fields:
    _require(gateway, {"name": str, "up": bool, "draining": bool, "reason": str})
    return {**gateway, "load": _number(gateway, "load", 0, 1)}


def _route(route: Any) -> Fields:
    _require(route, {"to": str, "by": str, "up": bool, "reason": str})
    return {**route, "flows": _integer(route, "flows", 0, MAX_INTEGER)}


def _require(item: Any, fields: dict[str, type]) -> None:
    if not isinstance(item, dict):
        raise ValueError("a list of objects has something else in it")
    for name, kind in fields.items():
        if type(item.get(name)) is not kind:
            raise ValueError(f"{name} in a list of objects is not what it should be")


def _integer(document: Fields, name: str, low: int, high: int, default: int | None = None) -> int:
    value = document.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is not a whole number from {low} to {high}")
    return value


def _number(document: Fields, name: str, low: float, high: float, *, optional: bool = False) -> Any:
    value: Any = document.get(name)
    if value is None and optional:
        return None
    if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
        raise ValueError(f"{name} is not a number from {low:g} to {high:g}")
    return value


def _word(document: Fields, name: str, words: tuple[str, ...], default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} is none of {', '.join(words)}")
    return value


def _text(document: Fields, name: str, pattern: re.Pattern[str]) -> str:
    value = document.get(name)
    if not isinstance(value, str) or (value and not pattern.fullmatch(value)):
        raise ValueError(f"{name} is not what it should be")
    return value


def read_state(run_dir: str) -> Fields:
    """Returns the checked fields of a run folder's state.json; raises OSError or ValueError."""
    with open(os.path.join(run_dir, STATE_FILE), "rb") as file:
        data = file.read(MAX_STATE_BYTES + 1)
    if len(data) > MAX_STATE_BYTES:
        raise ValueError("it is too long")
    return parse_state(data.decode("utf-8"))


def is_alive(pid: int) -> bool:
    """Says whether a process runs; one that nobody has waited for yet (a zombie) does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold anything; the state's letter follows the last one.
            return file.read().rpartition(b")")[2].split()[:1] not in ([b"Z"], [b"X"])
    except OSError:
        return False


class Observer:
    """Reads a run folder's state.json when it has changed."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._file = os.path.join(run_dir, STATE_FILE)
        self._seen: tuple[int, ...] = ()
        self._fields: Fields = {}

    def fields(self, now: float) -> Fields:
        """Returns the fields in force at `now` (unix s); of a state nobody vouches for, only its word."""
        try:
            status = os.stat(self._file)
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                self._fields = read_state(self._run_dir)
                self._seen = seen
        except FileNotFoundError:
            return {"state": "stopped"}
        except (OSError, ValueError):
            return {"state": "unknown"}
        if self._fields["state"] in ("stopped", "failed"):
            return self._fields
        if not is_alive(self._fields["pid"]):
            return {"state": "stopped"}
        if abs(now - self._fields["updated"]) > STALE_SECONDS:
            return {"state": "unknown"}
        return self._fields


class Jobs:
    """Reads a run folder's jobs.json when it has changed."""

    def __init__(self, run_dir: str) -> None:
        self._file = os.path.join(run_dir, JOBS_FILE)
        self._seen: tuple[int, ...] = ()
        self._jobs: dict[str, Fields] = {}

    def by_slot(self) -> dict[str, Fields]:
        """Returns the checked fields of the job in each slot that has one; none where the file says nonsense."""
        try:
            status = os.stat(self._file)
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                self._seen = seen
                with open(self._file, "rb") as file:
                    self._jobs = parse_jobs(file.read(MAX_JOBS_BYTES))
        except (OSError, ValueError):
            self._jobs = {}
        return self._jobs


def parse_jobs(data: bytes) -> dict[str, Fields]:
    """Returns the fields of the job in each slot, each checked; raises ValueError."""
    try:
        accounts = [job["account"] for job in json.loads(data)["jobs"]]
        found: dict[str, Fields] = {}
        for account in accounts:
            slot = account["slot"]
            if account["ended"] is None and isinstance(slot, str) and _SLOT.fullmatch(slot):
                received, sent, *_ = account["totals"]
                connections = sum(moved[-1] for moved in account["classes"].values())
                counts = {"bytes_in": received, "bytes_out": sent, "connections": connections}
                found[slot] = {name: _integer(counts, name, 0, MAX_INTEGER) for name in counts}
                for name in ("peak_in_mbps", "peak_out_mbps"):
                    found[slot][name] = _number(account, name, 0, 1e9)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not what it should be: {error}") from None
    return found


def slot_advertisement(slot: str, fields: Fields) -> str:
    """Returns the ad of one slot's job, which goes into that slot alone (its name begins so); no fields: undefined."""
    lines = [f"{name} = {literal(type_, fields.get(field))}\n" for name, field, type_, _, _ in JOB_ATTRIBUTES]
    return "".join(lines) + f'SlotName = "{slot}@"\n- {slot}\n'


class SlotAdvertiser:
    """Decides what is to be printed of the jobs, and when; like `Advertiser`, it knows nothing of files or clocks."""

    def __init__(self) -> None:
        self._told: dict[str, Fields] = {}
        self._when = -math.inf

    def due(self, jobs: dict[str, Fields], now: float) -> str:
        """Returns what to print at `now` (a clock that only goes forward, s), or ""."""
        if now - self._when < REFRESH_SECONDS or jobs == self._told:
            return ""
        changed = [slot for slot in sorted({*jobs, *self._told}) if jobs.get(slot) != self._told.get(slot)]
        self._told, self._when = jobs, now
        return "".join(slot_advertisement(slot, jobs.get(slot, {})) for slot in changed)


def advertised(fields: Fields) -> Fields:
    """Returns each attribute's value, None where there is none to tell."""
    up = fields["state"] == "up"
    return {
        attribute.name: fields.get(attribute.field) if up or attribute.field not in ONLY_WHILE_UP else None
        for attribute in ATTRIBUTES
    }


def literal(type_: str, value: Any) -> str:
    """Writes a checked value as a ClassAd literal; none, or an empty string, is `undefined`."""
    if value is None or value == "":
        return "undefined"
    if type_ == "string":
        return f'"{value}"'
    return f"{value:.3f}" if type_ == "real" else f"{value:.0f}"


def advertisement(fields: Fields) -> str:
    """Returns the lines of one ad, without the line that ends it."""
    values = advertised(fields)
    return "".join(f"{name} = {literal(type_, values[name])}\n" for name, _, type_, _, _ in ATTRIBUTES)


def urgent(fields: Fields) -> tuple[Any, ...]:
    """What the pool must know at once when it changes: all but the numbers' sizes."""
    values = advertised(fields)
    return tuple(
        values[name] is not None if type_ == "real" or unit == "bytes" else values[name]
        for name, _, type_, unit, _ in ATTRIBUTES
    )


class Advertiser:
    """Decides what is to be printed, and when; knows nothing of files, pipes or clocks."""

    def __init__(self) -> None:
        self._told: tuple[Any, ...] | None = None
        self._printed = ""
        self._when = -math.inf
        self._last: Fields | None = None
        self._waits = False

    def due(self, fields: Fields, now: float) -> str:
        """Returns what to print at `now` (a clock that only goes forward, s), or "". `fields` are not changed later."""
        early = now - self._when < REFRESH_SECONDS
        if fields is self._last and (early or not self._waits):
            return ""  # as nearly always: it must not cost anything
        text, key = advertisement(fields), urgent(fields)
        self._last, self._waits = fields, text != self._printed
        if key == self._told and (early or not self._waits):
            return ""
        ending = IN_TIME if key == self._told else AT_ONCE
        self._told, self._printed, self._when, self._waits = key, text, now, False
        return text + ending


def reconfigure_startd() -> None:
    """Sends our parent a SIGHUP if it is a startd of our own user."""
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/comm", encoding="ascii") as file:
            if file.read() == "condor_startd\n":
                os.kill(parent, signal.SIGHUP)
    except OSError as error:
        print(f"the startd was not told to send its ads at once: {error}", file=sys.stderr)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`, where a pipe takes it in parts."""
    while data:
        data = data[os.write(descriptor, data) :]


def main(arguments: list[str]) -> int:
    """Prints ads until nobody reads them any more, with `--once` one; our own path says where the run folder is."""
    run_dir = os.path.dirname(os.path.dirname(os.path.abspath(arguments[0])))
    observer, jobs = Observer(run_dir), Jobs(run_dir)
    if "--once" in arguments[1:]:
        write_all(sys.stdout.fileno(), advertisement(observer.fields(time.time())).encode("ascii"))
        return 0
    advertiser, slots = Advertiser(), SlotAdvertiser()
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # only POLLERR and POLLHUP: the startd has closed its end
    try:
        while True:
            text = advertiser.due(observer.fields(time.time()), time.monotonic())
            of_jobs = slots.due(jobs.by_slot(), time.monotonic())
            if text or of_jobs:
                write_all(sys.stdout.fileno(), (of_jobs + text).encode("ascii"))
            if text.endswith(AT_ONCE) and "--reconfigure" in arguments[1:]:
                reconfigure_startd()
            if output.poll(POLL_SECONDS * 1000):
                return 0
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
