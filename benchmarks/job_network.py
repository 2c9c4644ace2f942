"""What a job's own network adds to its start and end: hook, wrapper, wiring, totals; and a shell script beside it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.site import Site

JOBS_A_ROUND = 20
AT_ONCE = 20
_INSIDE = Path(__file__).with_name("inside_pilot.py")

#: What one would write without us: the same network by ip, nft and tc, and its end. Neither counts for HTCondor.
_START = """
set -e
ip netns add peer
ip link add peer0 type veth peer name eth0 netns peer
ip addr add 192.0.2.0/31 dev peer0
ip link set peer0 up
ip -n peer addr add 192.0.2.1/31 dev eth0
ip -n peer link set eth0 up
ip -n peer link set lo up
ip -n peer route add default via 192.0.2.0
tc qdisc add dev peer0 root tbf rate 100mbit burst 256kb latency 20ms
nft 'add table ip peer; add counter ip peer up; add counter ip peer down'
"""
_END = """
set -e
nft list counters > /dev/null
nft delete table ip peer
ip link del peer0
ip netns del peer
"""


def measure(report: Report, rounds: int, _: int) -> None:
    report.say("A job's own network")
    jobs = rounds * JOBS_A_ROUND
    with Site() as site, SiteGateway(site.dmz, site.folder / "gateway") as gateway:
        argv = gateway.run_argv([sys.executable, "-I", str(_INSIDE), str(jobs), str(AT_ONCE)])
        done = site.node.run(argv, timeout_seconds=300, check=True)
        script = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for lines in (_START, _END):
                site.node.run(["sh", "-c", lines], as_root=True, check=True)
            script.append((time.perf_counter() - begin) * 1e3)
        none = []
        for _ in range(rounds):  # what running two shells on a host of the site takes by itself
            begin = time.perf_counter()
            for _ in range(2):
                site.node.run(["sh", "-c", ":"], as_root=True, check=True)
            none.append((time.perf_counter() - begin) * 1e3)
    told = json.loads(done.stdout)
    plain = statistics.median(told["alone"]["plain"])
    added = sorted((seconds - plain) * 1e3 for seconds in told["alone"]["networked"])
    median, p95 = statistics.median(added), added[int(0.95 * len(added))]
    report.add(f"added to a job's start and end, median of {jobs}", median <= 50, median, "ms", "<= 50 ms")
    report.add(f"added to a job's start and end, p95 of {jobs}", p95 <= 100, p95, "ms", "<= 100 ms")
    for name, figure in (("median", statistics.median), ("longest", max)):
        value = (figure(told["at_once"]["networked"]) - figure(told["at_once"]["plain"])) * 1e3
        report.add(f"added when {AT_ONCE} jobs start at once, {name}", True, value, "ms", MEASURED)
    value = statistics.median(script) - statistics.median(none)
    report.add("a shell script of ip, nft and tc, start and end", True, value, "ms", MEASURED)
