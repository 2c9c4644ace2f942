"""One and ten flows each way: no tunnel, our stream engine, and openconnect with vpnns, turn by turn in one run."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from benchmarks.openconnect import OpenconnectPeer
from htcondor_vpn.linux.programs import find_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.services import IPERF_PORTS, WorldServices
from htcondor_vpn.testbed.site import Site

LINK_MBPS = 1000
CELLS = [(flows, way) for flows in (1, 10) for way in ("up", "down")]

#: The argv in front of iperf3, for each contender.
Contenders = dict[str, Callable[[Sequence[str]], list[str]]]


def measure(report: Report, rounds: int, seconds: int = 3) -> None:
    """`seconds` is how long each transfer is measured, after a first second that does not count."""
    with Site(LINK_MBPS) as site, WorldServices(site), SiteGateway(site.dmz, site.folder / "gateway") as gateway:
        # The rates are told, so that measuring them does not disturb the measurement.
        told = ["--set", "HTCONDOR_VPN_UP_MBPS=1", "--set", "HTCONDOR_VPN_DOWN_MBPS=1"]
        ours: Contenders = {"stream": lambda argv: gateway.run_argv(argv, *told)}
        report.say(f"Throughput, link shaped to {LINK_MBPS} Mbit/s")
        shaped = _compare(site, ours, rounds, seconds)
        for (flows, way), medians in shaped.items():
            _ratio(report, f"stream, {flows} flow(s) {way}, {LINK_MBPS} Mbit/s", medians, "stream", "direct", 0.95)
        report.say("Throughput, link not shaped")
        site.link.shape(None)
        with OpenconnectPeer(site) as peer:
            unshaped = _compare(site, {**ours, "openconnect": peer.argv}, rounds, seconds)
        for (flows, way), medians in unshaped.items():
            name = f"stream, {flows} flow(s) {way}, not shaped"
            _ratio(report, name, medians, "stream", "openconnect", 8)
            report.add(f"{name}: part of no tunnel", True, medians["stream"] / medians["direct"], "", MEASURED)


def _ratio(report: Report, name: str, medians: dict[str, float], one: str, other: str, wanted: float) -> None:
    ratio = medians[one] / medians[other]
    figures = f"({medians[one]:,.0f} of {medians[other]:,.0f} Mbit/s)"
    what = "no tunnel" if other == "direct" else "openconnect --script-tun + vpnns"
    report.add(f"{name}: times {what}", ratio >= wanted, ratio, figures, f">= {wanted}")


def _compare(site: Site, contenders: Contenders, rounds: int, seconds: int) -> dict[tuple[int, str], dict[str, float]]:
    """Returns the median rate in Mbit/s for each cell and contender, "direct" among them.

    The DMZ forwards packets only while someone else than we is measured.
    """
    found: dict[tuple[int, str], dict[str, list[float]]] = {cell: {} for cell in CELLS}
    for turn in range(rounds):
        for cell in CELLS:
            for name, argv in {"direct": list, **contenders}.items():
                with nullcontext() if name == "stream" else site.direct_route():
                    found[cell].setdefault(name, []).append(_iperf(site, argv, *cell, turn, seconds))
    return {cell: {name: statistics.median(rates) for name, rates in by.items()} for cell, by in found.items()}


def _iperf(
    site: Site, argv: Callable[[Sequence[str]], list[str]], flows: int, way: str, turn: int, seconds: int
) -> float:
    """Returns the rate that the receiver saw, Mbit/s, without the first second."""
    command = [
        find_program("iperf3"), "--json", "--client", str(plan.WORLD["iperf"].v4), "--time", str(seconds),
        "--omit", "1", "--parallel", str(flows), "--port", str(IPERF_PORTS[turn % len(IPERF_PORTS)]),
        *(["--reverse"] if way == "down" else []),
    ]  # fmt: skip
    done: subprocess.CompletedProcess[str] = site.node.run(argv(command), timeout_seconds=60)
    told = json.loads(done.stdout)
    if "error" in told:
        raise RuntimeError(f"iperf3: {told['error']} {done.stderr}")
    return float(told["end"]["sum_received"]["bits_per_second"]) / 1e6
