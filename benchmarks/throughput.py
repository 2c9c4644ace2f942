"""How fast: line rate on a shaped link, the same far away with loss, and as fast as it goes beside the peers."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.contenders import Contender, Direct
from benchmarks.contenders.openconnect import OpenconnectPeer, ocserv
from benchmarks.contenders.pilot import openconnect, stream, wireguard
from benchmarks.contenders.ssh import SshSocks
from benchmarks.transfers import Goal, cells, compare
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.report import Report
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.site import Site

#: There and back.
ROUND_TRIP_MS = 20

LINE_GOALS = [Goal("stream", "no tunnel", 0.97)]
UNSHAPED_GOALS = [
    Goal("stream", OpenconnectPeer.name, 14, flows=(1,)),
    Goal("stream", OpenconnectPeer.name, 8, flows=(10,)),
    Goal("stream", SshSocks.name, 1.5, flows=(1,)),
    Goal("stream", "wireguard", 2.5, flows=(1,)),
    Goal("stream", Direct.name, 0.4, flows=(1,)),
    Goal("openconnect", OpenconnectPeer.name, 1.2, flows=(1,)),
]
WIREGUARD_LINE_GOALS = [Goal("wireguard", Direct.name, 0.93)]
#: Processor seconds for each GB.
STREAM_CPU_SECONDS = 4


def line_rate(report: Report, rounds: int, seconds: int) -> None:
    """A link of 1 Gbit/s."""
    _shaped(report, rounds, seconds, 1000)
    with ExitStack() as exits:
        site = exits.enter_context(Site(1000))
        exits.enter_context(WorldServices(site))
        contenders: list[Contender] = [Direct(site), exits.enter_context(wireguard(site))]
        found = compare(site, contenders, cells(1), rounds, seconds)
    found.report_ratios(report, WIREGUARD_LINE_GOALS, "1000 Mbit/s")


def far(report: Report, rounds: int, seconds: int) -> None:
    """200 Mbit/s, 20 ms away, with 0.1 % and with 1 % of the packets lost, each way."""
    for loss in (0.001, 0.01):
        _shaped(report, rounds, seconds, 200, ROUND_TRIP_MS / 2, loss)


def _shaped(report: Report, rounds: int, seconds: int, rate_mbps: float, delay_ms: float = 0, loss: float = 0) -> None:
    link = f"{rate_mbps:g} Mbit/s" + (f", {2 * delay_ms:g} ms, {loss:.1%} loss" if delay_ms else "")
    report.say(f"Throughput, {link}")
    with ExitStack() as exits:
        site = exits.enter_context(Site(rate_mbps, delay_ms, loss))
        exits.enter_context(WorldServices(site))
        gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway"))
        contenders: list[Contender] = [Direct(site), exits.enter_context(stream(site, gateway))]
        found = compare(site, contenders, cells(1, 2, 10, 20), rounds, seconds)
    found.report_ratios(report, LINE_GOALS, link)


def unshaped(report: Report, rounds: int, seconds: int) -> None:
    """As fast as it goes, and what that costs, beside the peers: all up at once, measured in turns."""
    report.say("Throughput, link not shaped")
    with ExitStack() as exits:
        site = exits.enter_context(Site())
        exits.enter_context(WorldServices(site))
        gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway"))
        server = exits.enter_context(ocserv(site))
        contenders: list[Contender] = [
            Direct(site),
            exits.enter_context(stream(site, gateway)),
            exits.enter_context(OpenconnectPeer(site, server)),
            exits.enter_context(openconnect(site, server)),
            exits.enter_context(SshSocks(site)),
            exits.enter_context(wireguard(site)),
        ]
        found = compare(site, contenders, cells(1, 10), rounds, seconds)
    found.report_ratios(report, UNSHAPED_GOALS, "not shaped")
    for contender in contenders[1:]:
        found.report_cpu(report, contender.name, 1, STREAM_CPU_SECONDS if contender.name == "stream" else None)
