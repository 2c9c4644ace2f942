"""Runs in a process of its own, which becomes a pilot's inner namespace with one job: what counting costs on its link.

Nothing is behind the link but the far side, so that nothing else limits the transfer. Usage: inside_job_link CLASSES
PAIRS; prints JSON, `Rates` by the way and the number of flows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack

from benchmarks.counted_turns import in_turns, server
from htcondor_vpn.jobnet.counting.rules import policy_rules, table_rules
from htcondor_vpn.jobnet.counting.table import JobTable
from htcondor_vpn.jobnet.place import TUNNEL_MTU
from htcondor_vpn.jobnet.policy.decision import Decision
from htcondor_vpn.jobnet.policy.destinations import Destination, parse_destination
from htcondor_vpn.jobnet.wiring import Wiring
from htcondor_vpn.linux import links
from htcondor_vpn.linux.namespaces import capabilities_to_programs
from htcondor_vpn.linux.netlink import Netlink
from htcondor_vpn.linux.programs import find_program, run_program
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.jobs_together import be_pilot, enter, job_namespaces

PORT = 7001
FAR = plan.WORLD["iperf"].v4


def classes(count: int) -> dict[str, tuple[Destination, ...]]:
    """So many classes as sites have them, of a few networks and ports; FAR is in the last, so that all are tried."""
    found = {}
    for number in range(1, count + 1):
        texts = [f"10.{number}.0.0/16", f"172.16.{number}.0/24", f"2001:db8:{number}::/48"]
        texts += [f"192.0.2.{number} tcp port 1094-1095", *([str(FAR)] if number == count else [])]
        found[f"class{number}"] = tuple(map(parse_destination, texts))
    return found


def main(class_count: int, pairs: int) -> None:
    be_pilot()
    with Netlink() as netlink:
        netlink.do([links.add_address(links.LOOPBACK_INDEX, FAR, 32)])
    nft = find_program("nft", "nftables")
    table = JobTable(nft)
    rules = policy_rules("bench", (), (), list(classes(class_count).values()))
    rules = table_rules(logging=True, known_flows=True) + rules
    run_program([nft, "-f", "-"], stdin=rules, preexec=capabilities_to_programs)
    table.lead(0, "bench")
    wiring = Wiring(mtu=TUNNEL_MTU, end_here=True)
    wiring.open()
    with ExitStack() as exits:
        far_side = exits.enter_context(subprocess.Popen(server([FAR], PORT), stdout=subprocess.PIPE, text=True))
        exits.callback(far_side.kill)
        assert far_side.stdout is not None
        if not far_side.stdout.readline():
            raise RuntimeError("the far side does not listen")
        inside = exits.enter_context(job_namespaces())
        wiring.connect(0, inside[1], Decision(), ("ipv4", "ipv6"))

        def start(argv: list[str]) -> subprocess.Popen[str]:
            return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: enter(inside))

        cells = [(way, flows) for flows in (1, 10) for way in ("up", "down")]
        found = {f"{way} {flows}": in_turns(start, FAR, PORT, way, flows, pairs) for way, flows in cells}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
