"""The sessions of a gateway for packets: each is counted and recorded as a flow of a gateway for streams is.

A VPN's program is asked for those that there are, and tells counters that may begin again when it is started anew.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable
from typing import NamedTuple

from htcondor_vpn.gateway.serving.flows import Flow, Flows


class Reading(NamedTuple):
    """One session as it stands: whose it is, whence it comes (HOST:PORT), its address in the tunnel, and bytes.

    Where counters outlive sessions there are some for who has none just now, which is not `live`.
    """

    key: Hashable
    pilot: str
    source: str
    address: str
    bytes_up: int
    bytes_down: int
    live: bool = True


class Sessions:
    """Those of a `protocol`, which is the word for it in the ledger."""

    def __init__(self, protocol: str) -> None:
        self.flows = Flows()
        self._protocol = protocol
        self._live: dict[Hashable, Flow] = {}
        self._counters: dict[Hashable, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._live

    def told(self, readings: Iterable[Reading], admitted: Container[str]) -> None:
        """Takes all that there is now; a session that has gone was cut if its pilot is not `admitted` any more."""
        before, self._counters = self._counters, {}
        live = set()
        for reading in readings:
            now = self._counters[reading.key] = reading.bytes_up, reading.bytes_down
            if not reading.live:
                continue
            live.add(reading.key)
            flow = self._live.get(reading.key)
            if flow is None:
                flow = self.flows.begin(reading.pilot, f"{reading.source}/{self._protocol}")
                self._live[reading.key] = flow
            flow.via = reading.address
            up, down = (
                new - old if new >= old else new for old, new in zip(before.get(reading.key, (0, 0)), now)
            )
            flow.traffic.bytes_to_plain += up
            flow.traffic.bytes_from_plain += down
        for key in [key for key in self._live if key not in live]:
            self._end(key, "ended" if self._live[key].pilot in admitted else "credential_revoked")

    def end_all(self, outcome: str) -> None:
        """Ends them, for the reason that one word tells."""
        for key in list(self._live):
            self._end(key, outcome)

    def _end(self, key: Hashable, outcome: str) -> None:
        self.flows.end(self._live.pop(key), outcome)
