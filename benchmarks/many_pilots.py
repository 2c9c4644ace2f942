"""Two hundred pilots on one gateway, each with a token of its own and one flow: all served, alike, in little memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.processes import pss_bytes, tree
from htcondor_vpn.gateway.trust.tokens import TokenStore
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.site import Site

PILOTS = 200
SECONDS = 10
TOTAL_MBPS = 800
_SOURCE_PORT = 7000
_STOP_SECONDS = 20

#: All come from one address here, and at the same time.
_CONFIG = "HTCONDOR_VPN_GATEWAY_HANDSHAKES_PER_SECOND = 10000\n"
_LIMIT = f"HTCONDOR_VPN_GATEWAY_DOWN_MBPS = {TOTAL_MBPS}\n"

#: The far side: sends without end to everyone who connects.
_SOURCE = """
import asyncio, sys
async def serve(reader, writer):
    try:
        while True:
            writer.write(bytes(65536))
            await writer.drain()
    except OSError:
        pass
async def main():
    await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]), backlog=512)
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def measure(report: Report, _: int, __: int) -> None:
    report.say(f"{PILOTS} pilots on one gateway")
    counts, each = _measured(_CONFIG + _LIMIT)
    served, rate, unfair = _judged(counts)
    report.add(f"{PILOTS} pilots, a flow each: served", served == PILOTS, served, "", f"{PILOTS}")
    report.add(f"{PILOTS} pilots: rate of all together", True, rate, "Mbit/s", MEASURED)
    report.add(f"{PILOTS} pilots: farthest from the mean of {SECONDS} s", unfair <= 5, unfair, "%", "<= 5 %")
    report.add(f"{PILOTS} pilots: memory of the gateway for each (PSS)", each <= 6, each, "MB", "<= 6 MB")
    counts, _each = _measured(_CONFIG)
    served, rate, unfair = _judged(counts)
    least = min(counts) / statistics.mean(counts) * 100
    # What they share is the link then: TCP has a say in it, but nobody starves.
    report.add(f"{PILOTS} pilots, no limit: served", served == PILOTS, served, "", f"{PILOTS}")
    report.add(f"{PILOTS} pilots, no limit: rate of all together", True, rate, "Mbit/s", MEASURED)
    report.add(f"{PILOTS} pilots, no limit: farthest from the mean of {SECONDS} s", True, unfair, "%", MEASURED)
    report.add(f"{PILOTS} pilots, no limit: what the least got, of the mean", least >= 25, least, "%", ">= 25 %")


def _judged(counts: list[int]) -> tuple[int, float, float]:
    """How many were served, at how many Mbit/s in all, and how far from the mean the farthest is, in percent of it."""
    mean = statistics.mean(counts)
    unfair = max(abs(count - mean) for count in counts) / mean * 100
    return sum(count > 0 for count in counts), sum(counts) * 8e-6 / SECONDS, unfair


def _measured(settings: str) -> tuple[list[int], float]:
    """The bytes that each pilot got, and the gateway's memory for each in MB."""
    target = str(plan.WORLD["iperf"].v4)
    with ExitStack() as exits:
        site = exits.enter_context(Site(1000))
        log = site.folder / "source.log"
        log.touch()
        source = site.world.start([sys.executable, "-c", _SOURCE, target, str(_SOURCE_PORT)], log=log)
        exits.callback(_end, source)
        wait_for_log(log, b"^ready$", source)
        config = site.folder / "gateway.conf"
        config.write_text(settings)
        gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway", "--config", str(config)))
        assert gateway.process is not None
        tokens = _tokens(gateway.state_folder)
        rest = _memory(gateway)
        argv = [
            sys.executable, str(Path(__file__).with_name("inside_node.py")), str(plan.DMZ_INSIDE.v4), str(PORT),
            str(gateway.pin_file), target, str(_SOURCE_PORT), str(SECONDS),
        ]  # fmt: skip
        client = site.node.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, log=site.folder / "client.log")
        exits.callback(_end, client)
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(" ".join(tokens).encode() + b"\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"open\n", (site.folder / "client.log").read_text()
        counts = json.loads(client.stdout.readline())
        grown = _memory(gateway) - rest
        client.stdin.close()
    return counts, grown / PILOTS / 1e6


def _tokens(folder: Path) -> list[str]:
    store = TokenStore(folder)
    try:
        return [store.add(f"pilot{number}") for number in range(PILOTS)]
    finally:
        store.close()


def _memory(gateway: SiteGateway) -> int:
    assert gateway.process is not None
    return sum(map(pss_bytes, tree(gateway.process.pid)))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(_STOP_SECONDS)
