"""state.json of the run folder: what the supervisor says of the tunnel, and whether somebody still vouches for it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from htcondor_vpn.publish.advertiser.checks import (
    MAX_INTEGER,
    Fields,
    checked_integer,
    checked_number,
    checked_text,
    checked_word,
)

STATE_FILE = "state.json"
MAX_STATE_BYTES = 65536
VERSION = 1
STATES = ("starting", "connecting", "up", "down", "stopping", "stopped", "failed")

#: The supervisor writes state.json anew at least every few seconds; one older than this has nobody behind it.
STALE_SECONDS = 30.0

#: How packets travel, with an engine that sends packets.
TRANSPORTS = ("", "dtls", "tls")

# Neither of these lets a quote, a backslash or a line's end through: a string literal then needs no escaping, which
# HTCondor's old and new ClassAd syntax do differently.
_ENGINE = re.compile(r"[a-z][a-z0-9-]{0,31}")
_GATEWAY = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,32})?\]):[0-9]{1,5}")


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
        "pid": checked_integer(document, "pid", 1, 2**31 - 1),
        "state": checked_word(document, "state", STATES),
        "since": checked_number(document, "since", 0, MAX_INTEGER),
        "engine": checked_text(document, "engine", _ENGINE),
        "gateway": checked_text(document, "gateway", _GATEWAY),
        "latency_ms": checked_number(document, "latency_ms", 0, 1e9, optional=True),
        "up_mbps": checked_number(document, "up_mbps", 0, 1e9, optional=True),
        "down_mbps": checked_number(document, "down_mbps", 0, 1e9, optional=True),
        "bytes_in": checked_integer(document, "bytes_in", 0, MAX_INTEGER),
        "bytes_out": checked_integer(document, "bytes_out", 0, MAX_INTEGER),
        "flows": checked_integer(document, "flows", 0, MAX_INTEGER),
        "jobs": checked_integer(document, "jobs", 0, MAX_INTEGER, default=0),
        "reason": document.get("reason", ""),
        "families": document.get("families"),
        "transport": checked_word(document, "transport", TRANSPORTS, default=""),
        "holds_connects": document.get("holds_connects", False),
        "gateways": [_gateway(gateway) for gateway in document.get("gateways", ())],
        "routes": [_route(route) for route in document.get("routes", ())],
        "updated": checked_number(document, "updated", 0, MAX_INTEGER),
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
    return {**gateway, "load": checked_number(gateway, "load", 0, 1)}


def _route(route: Any) -> Fields:
    _require(route, {"to": str, "by": str, "up": bool, "reason": str})
    return {**route, "flows": checked_integer(route, "flows", 0, MAX_INTEGER)}


def _require(item: Any, fields: dict[str, type]) -> None:
    if not isinstance(item, dict):
        raise ValueError("a list of objects has something else in it")
    for name, kind in fields.items():
        if type(item.get(name)) is not kind:
            raise ValueError(f"{name} in a list of objects is not what it should be")


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
