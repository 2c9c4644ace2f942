"""What a pilot knows of its tunnel: the state it is in, since when and why, and what the engine reports; state.json."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path

from htcondor_vpn.errors import RunFolderError
from htcondor_vpn.pilot.states import TunnelState
from htcondor_vpn.publish.state import State
from htcondor_vpn.tunnel.engine import EngineReport

log = logging.getLogger(__name__)


class TunnelStatus:
    """Changed by the supervisor alone, and written into `run_dir` whenever it changes.

    Set `report`, `jobs` and `holds_connects` before `enter` or `write`.
    """

    def __init__(self, run_dir: Path, engine_name: str) -> None:
        self._run_dir, self._engine_name = run_dir, engine_name
        self.state = TunnelState.STARTING
        self.reason = ""
        self.report = EngineReport(up=False)
        self.jobs = 0
        self.holds_connects = False
        self._since = time.time()
        self._ended_bytes = (0, 0)  # in, out, of engines that died
        self._write_failed = False

    def enter(self, state: TunnelState, reason: str = "") -> None:
        """Enters `state` (staying is no change), and writes it down.

        Raises `RunFolderError` where that cannot be written and COMMAND does not run yet.
        """
        if state is not self.state:
            if not self.state.may_become(state):
                raise AssertionError(f"the tunnel cannot become {state.value} from {self.state.value}")
            log.info("the tunnel is %s%s", state.value, f": {reason}" if reason else "")
            self.state, self._since = state, time.time()
        self.reason = reason
        try:
            self._write()
        except RunFolderError as error:
            if state in (TunnelState.STARTING, TunnelState.CONNECTING):
                raise
            if not self._write_failed:  # once is enough in the log; readers see that the state is stale
                log.error("%s", error)
            self._write_failed = True
        else:
            self._write_failed = False

    def refresh(self) -> None:
        """Writes it down again, so that readers see that we live."""
        self.enter(self.state, self.reason)

    def forget_engine(self) -> None:
        """The engine died: what it carried stays counted, and what it said of the gateway's families holds."""
        self._ended_bytes = self._bytes()
        self.report = EngineReport(up=False, gateway=self.report.gateway, families=self.report.families)

    def _bytes(self) -> tuple[int, int]:
        return self._ended_bytes[0] + self.report.bytes_in, self._ended_bytes[1] + self.report.bytes_out

    def _write(self) -> None:
        report, up = self.report, self.state is TunnelState.UP
        bytes_in, bytes_out = self._bytes()
        State(
            state=self.state.value,
            since=self._since,
            engine=report.engine or self._engine_name,
            gateway=report.gateway,
            latency_ms=report.latency_ms if up else None,
            up_mbps=report.up_mbps if up else None,
            down_mbps=report.down_mbps if up else None,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            flows=report.flows,
            jobs=self.jobs,
            families=report.families,
            transport=report.transport if up else "",
            holds_connects=self.holds_connects,
            gateways=tuple(asdict(carrier) for carrier in report.carriers),
            routes=tuple(asdict(route) for route in report.routes),
            reason=self.reason,
        ).write(self._run_dir)
