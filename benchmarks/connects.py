"""What it costs that a connect waits for the far side: the time of connects and first answers, and the rate after."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.contenders import Contender, Direct
from benchmarks.contenders.pilot import PilotContender
from benchmarks.throughput import ROUND_TRIP_MS
from benchmarks.transfers import Goal, cells, compare
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.services import WorldServices
from htcondor_vpn.testbed.services.oddities import ECHO_PORT
from htcondor_vpn.testbed.site import Site

HELD, NOT_HELD = "stream", "stream, connects not held"
_CONNECTS = 40
#: No more than the far side has room for in its queue of connections.
_AT_ONCE = 64

#: Prints a list of [seconds to the end of connect, seconds to the answer], of connects one after the other, and the
#: seconds for many at once.
_CLIENT = """
import json, select, socket, sys, time
target, count, at_once = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])
found = []
for _ in range(count):
    begin = time.perf_counter()
    with socket.create_connection(target) as connection:
        connected = time.perf_counter() - begin
        connection.sendall(b"x")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(2) == b"x"
        found.append((connected, time.perf_counter() - begin))
poll, socks, begin = select.poll(), {}, time.perf_counter()
for _ in range(at_once):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(target)
    socks[sock.fileno()] = sock
    poll.register(sock, select.POLLOUT)
kept = []
while socks:
    for descriptor, _ in poll.poll():
        poll.unregister(descriptor)
        kept.append(socks.pop(descriptor))
        assert kept[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
print(json.dumps([found, time.perf_counter() - begin]))
"""


def measure(report: Report, rounds: int, seconds: int) -> None:
    for delay_ms in (0, ROUND_TRIP_MS / 2):
        report.say(f"Connects, {_link(2 * delay_ms)}")
        with ExitStack() as exits:
            site = exits.enter_context(Site(delay_ms=delay_ms))
            contenders = _contenders(site, exits)
            latencies(report, site, contenders, rounds, 2 * delay_ms)
            if not delay_ms:
                found = compare(site, contenders, cells(1), rounds, seconds)
                found.report_ratios(report, [Goal(HELD, NOT_HELD, 0.97)], "not shaped")


def _contenders(site: Site, exits: ExitStack) -> list[Contender]:
    exits.enter_context(WorldServices(site))
    gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway"))
    told = ["--gateway", gateway.endpoints[0], "--pin-file", str(gateway.pin_file)]
    told += ["--token-file", str(gateway.token_file), "--set"]
    return [
        Direct(site),
        exits.enter_context(PilotContender(site, HELD, [*told, "HTCONDOR_VPN_HOLD_CONNECTS=on"])),
        exits.enter_context(PilotContender(site, NOT_HELD, [*told, "HTCONDOR_VPN_HOLD_CONNECTS=off"])),
    ]


def latencies(report: Report, site: Site, contenders: Sequence[Contender], rounds: int, round_trip_ms: float) -> None:
    """Rows of how long connects and first answers take, one after the other and many at once."""
    link = _link(round_trip_ms)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    together: dict[str, list[float]] = defaultdict(list)
    client = [sys.executable, "-c", _CLIENT, str(plan.WORLD["http"].v4), str(ECHO_PORT), str(_CONNECTS), str(_AT_ONCE)]
    for _ in range(rounds):
        for contender in contenders:
            with contender.turn():
                done = site.node.run(contender.argv(client), timeout_seconds=90, check=True)
            each, all_of_them = json.loads(done.stdout)
            found[contender.name] += each
            together[contender.name].append(all_of_them)
    if round_trip_ms:
        # What the tunnel adds to the time until an answer is there, whenever it says that it is connected.
        direct, ours = (1e3 * statistics.median(answer for _, answer in found[name]) for name in (Direct.name, HELD))
        added = (ours - direct) / round_trip_ms
        report.add(f"new flow, {HELD}, {link}: beyond {Direct.name}", added <= 1.3, added, "round trips", "<= 1.3")
    for name, times in found.items():
        connects, answers = ([1e3 * time for time in column] for column in zip(*times))
        report.add(f"connect, {name}, {link}", True, statistics.median(connects), "ms", MEASURED)
        report.add(f"connect and first answer, {name}, {link}", True, statistics.median(answers), "ms", MEASURED)
        at_once = 1e3 * statistics.median(together[name])
        report.add(f"{_AT_ONCE} connects at once, {name}, {link}", True, at_once, "ms", MEASURED)


def _link(round_trip_ms: float) -> str:
    return f"{round_trip_ms:g} ms there and back" if round_trip_ms else "no delay"
