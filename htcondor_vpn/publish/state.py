"""state.json: what the supervisor of a pilot says of its tunnel, to everyone who asks.

The format is described and checked in `advertiser.state_file`, which has to stand alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from htcondor_vpn.errors import RunFolderError
from htcondor_vpn.publish.advertiser import state_file
from htcondor_vpn.publish.advertiser.checks import Fields


@dataclass(frozen=True)
class State:
    """The state of one pilot's tunnel. Times are unix seconds; `in` is received from the gateway."""

    state: str = "starting"
    since: float = 0.0
    engine: str = ""
    #: HOST:PORT, an IPv6 address in brackets; empty before there is one.
    gateway: str = ""
    latency_ms: float | None = None
    up_mbps: float | None = None
    down_mbps: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    flows: int = 0
    jobs: int = 0
    families: tuple[str, ...] = ()
    #: How packets travel, "dtls" or "tls"; empty with an engine that sends none.
    transport: str = ""
    #: Whether an application's connect waits for the far side's answer.
    holds_connects: bool = False
    #: All that the engine has to carry traffic: objects with `name`, `up`, `load`, `draining` and `reason`.
    gateways: tuple[dict[str, Any], ...] = ()
    #: What leads elsewhere than to the gateway: objects with `to`, `by`, `up`, `flows` and `reason`.
    routes: tuple[dict[str, Any], ...] = ()
    #: Why the state is what it is, for people.
    reason: str = ""
    pid: int = field(default_factory=os.getpid)
    updated: float = field(default_factory=time.time)

    def write(self, run_dir: Path) -> None:
        """Replaces the run folder's state.json in one step, readable by its owner alone.

        Raises ValueError for a value that no reader would accept, and `RunFolderError`.
        """
        text = json.dumps({"version": state_file.VERSION, **asdict(self)}, allow_nan=False)
        state_file.parse_state(text)
        fresh = run_dir / f".{state_file.STATE_FILE}.{os.getpid()}"
        try:
            try:
                fresh.touch(mode=0o600)
                fresh.write_text(text, encoding="utf-8")
                fresh.replace(run_dir / state_file.STATE_FILE)
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError.of(f"{run_dir / state_file.STATE_FILE}", error, "HTCONDOR_VPN_RUN_DIR") from error

    @classmethod
    def read(cls, run_dir: Path) -> State:
        """Reads a run folder's state.json as it stands. Raises OSError, and ValueError for a file that is damaged."""
        return cls._of(state_file.read_state(os.fspath(run_dir)))

    @classmethod
    def of(cls, data: bytes) -> State:
        """Returns what a state.json says; raises ValueError for one that is damaged, or too long."""
        if len(data) > state_file.MAX_STATE_BYTES:
            raise ValueError("it is too long")
        return cls._of(state_file.parse_state(data.decode("utf-8")))

    @classmethod
    def _of(cls, fields: Fields) -> State:
        del fields["version"]
        lists = {name: tuple(fields[name]) for name in ("families", "gateways", "routes")}
        return cls(**{**fields, **lists})

    def word(self, now: float | None = None) -> str:
        """Returns the state in force: "stopped" if the supervisor is gone, "unknown" if it has fallen silent."""
        if self.state in ("stopped", "failed"):
            return self.state
        if not state_file.is_alive(self.pid):
            return "stopped"
        silent_seconds = abs((time.time() if now is None else now) - self.updated)
        return "unknown" if silent_seconds > state_file.STALE_SECONDS else self.state


def run_folders(environ: Mapping[str, str]) -> list[Path]:
    """Returns the run folders of this user's pilots: the one this process runs in, else all under $TMPDIR or /tmp."""
    if environ.get("HTCONDOR_VPN_RUN_DIR"):
        return [Path(environ["HTCONDOR_VPN_RUN_DIR"])]
    top = Path(environ.get("TMPDIR") or "/tmp")  # noqa: S108  (only folders of our own uid are believed)
    return sorted(path for path in top.glob("htcondor-vpn-*") if _is_ours(path))


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
        return path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid() and not status.st_mode & 0o022
    except OSError:
        return False
