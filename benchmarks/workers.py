"""What more processes of the engine bring, and cost: as fast as it goes, and new flows."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.connects import latencies
from benchmarks.contenders import Contender, Direct
from benchmarks.contenders.pilot import stream
from benchmarks.throughput import STREAM_CPU_SECONDS
from benchmarks.transfers import Goal, cells, compare
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.report import Report
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import Site

ONE, TWO = "stream, 1 worker", "stream, 2 workers"
#: The others are only measured.
GOALS = [Goal(TWO, ONE, 0.95), *(Goal(each, Direct.name, 0) for each in (ONE, TWO))]


def measure(report: Report, rounds: int, seconds: int) -> None:
    report.say("The engine's workers, link not shaped")
    with ExitStack() as exits:
        site = exits.enter_context(Site())
        exits.enter_context(WorldServices(site))
        gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway"))
        by_workers = [stream(site, gateway, name, ENGINE_WORKERS=count) for count, name in ((1, ONE), (2, TWO))]
        contenders: list[Contender] = [Direct(site), *map(exits.enter_context, by_workers)]
        latencies(report, site, contenders, rounds, 0)
        found = compare(site, contenders, cells(1, 2, 10), rounds, seconds)
    found.report_ratios(report, GOALS, "not shaped")
    for name in (ONE, TWO):
        for flows in (1, 10):
            found.report_cpu(report, name, flows, STREAM_CPU_SECONDS)
