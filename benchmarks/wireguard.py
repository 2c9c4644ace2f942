"""A WireGuard gateway of ours: at line rate, and as fast as it goes, with its price."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.contenders import Contender, Direct
from benchmarks.contenders.wireguard import NAME, wireguard_gateway
from benchmarks.transfers import Goal, Samples, cells, compare
from htcondor_vpn.testbed.report import Report
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import Site

#: WireGuard's own headers take 4 % of a packet.
LINE_GOALS = [Goal(NAME, Direct.name, 0.93)]
UNSHAPED_GOALS = [Goal(NAME, Direct.name, 0)]


def measure(report: Report, rounds: int, seconds: int) -> None:
    """At 1 Gbit/s, and not shaped."""
    report.say("A WireGuard gateway of ours, 1000 Mbit/s")
    _compared(1000, rounds, seconds).report_ratios(report, LINE_GOALS, "1000 Mbit/s")
    report.say("A WireGuard gateway of ours, link not shaped")
    found = _compared(None, rounds, seconds)
    found.report_ratios(report, UNSHAPED_GOALS, "not shaped")
    found.report_cpu(report, NAME, 1)


def _compared(rate_mbps: float | None, rounds: int, seconds: int) -> Samples:
    with ExitStack() as exits:
        site = exits.enter_context(Site(rate_mbps))
        exits.enter_context(WorldServices(site))
        contenders: list[Contender] = [Direct(site), exits.enter_context(wireguard_gateway(site))]
        return compare(site, contenders, cells(1, 10), rounds, seconds)
