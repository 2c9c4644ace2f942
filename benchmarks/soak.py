"""`python -m benchmarks.soak [--minutes N]`: transfers without end while parts of the tunnel die at random.

What must hold: no file ever arrives wrong, transfers go on after every fault, nothing leaks, nothing grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable

from benchmarks.processes import family, pss_bytes
from htcondor_vpn.testbed import plan, sandbox
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.logs import Ledger
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.services import WorldServices, payload, url
from htcondor_vpn.testbed.site import Site

SIZES = (1, 1000, 100_000, 3_000_000, 30_000_000)
WORKERS = 6
RECOVERY_SECONDS = 30
_INSIDE = """
import hashlib, json, sys, time, urllib.request
sizes, digests, log, seed = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
while True:
    seed += 1
    size = sizes[seed % len(sizes)]
    try:
        body = urllib.request.urlopen(URL + str(size), timeout=20).read()
        word = "good" if hashlib.sha256(body).hexdigest() == digests[str(size)] else "wrong"
    except Exception as error:
        word = "failed"
        time.sleep(0.2)
    with open(log, "a") as file:
        file.write(json.dumps({"word": word, "size": size, "time": time.time()}) + "\\n")
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak ARGS=…", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="repeats the faults of another run")
    args = parser.parse_args()
    if not sandbox.inside():
        return sandbox.exec_inside([sys.executable, "-m", "benchmarks.soak", *sys.argv[1:]])
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    report = Report(f"htcondor_vpn: {args.minutes:g} minutes of transfers and faults, seed {seed}")
    _soak(report, args.minutes * 60, random.Random(seed))
    report.conclude()
    return 0 if report.ok else 1


def _soak(report: Report, seconds: float, dice: random.Random) -> None:
    ends = [(address, PORT) for address in plan.DMZ_INSIDE]
    with Site(1000, default_route=True) as site, WorldServices(site), Capture(site, ends) as capture:
        before = set(site.processes())
        with SiteGateway(site.dmz, site.folder / "gateway") as gateway:
            ledger = Ledger(site.folder / "transfers.jsonl")
            pilot = _start(site, gateway, ledger)
            ledger.wait_for(lambda entry: entry["word"] == "good")
            rest_bytes = sum(map(pss_bytes, family(pilot.pid)))
            faults = _faults(site, gateway, pilot.pid)
            end, counts = time.monotonic() + seconds, dict.fromkeys(faults, 0)
            while time.monotonic() < end:
                select.select([], [], [], dice.uniform(1, 6))  # the time between two faults is the experiment
                name = dice.choice(list(faults))
                faults[name]()
                counts[name] += 1
                since = time.time()
                ledger.wait_for(lambda entry, since=since: entry["word"] == "good" and entry["time"] > since,
                                RECOVERY_SECONDS)  # fmt: skip
            words = [entry["word"] for entry in ledger.entries()]
            grown_mb = (sum(map(pss_bytes, family(pilot.pid))) - rest_bytes) / 1e6
            descriptors = max(len(os.listdir(f"/proc/{pid}/fd")) for pid in family(pilot.pid))
            pilot.terminate()
            pilot.wait(20)
        for name, count in counts.items():
            report.add(f"fault: {name}", True, count, "times", MEASURED)
        report.add("good transfers", words.count("good") > 0, words.count("good"), "", "some")
        report.add("transfers that a fault broke", True, words.count("failed"), "", MEASURED)
        report.add("transfers with wrong content", "wrong" not in words, words.count("wrong"), "", "0")
        report.add("growth of run, engine and broker (PSS)", grown_mb < 20, grown_mb, "MB", "< 20 MB")
        report.add("most descriptors of one process", descriptors < 100, descriptors, "", "< 100")
        capture.stop()
        report.add("packets neither to nor from the gateway", not capture.foreign, len(capture.foreign), "", "0")
        left = set(site.processes()) - before
        report.add("processes left behind", not left, len(left), "", "0")


def _start(site: Site, gateway: SiteGateway, ledger: Ledger):  # type: ignore[no-untyped-def]
    code = f"URL = {url('/bytes/')!r}\n{_INSIDE}"
    (site.folder / "transfer.py").write_text(code)
    digests = json.dumps({size: payload.sha256(size) for size in SIZES})
    worker = f"{sys.executable} {site.folder}/transfer.py '{json.dumps(SIZES)}' '{digests}' {ledger.file}"
    script = "".join(f"{worker} {n * 1000} & " for n in range(WORKERS)) + "wait"
    log = site.folder / "soak.log"
    return site.node.start(gateway.run_argv(["sh", "-c", script]), log=log)


def _faults(site: Site, gateway: SiteGateway, pilot: int) -> dict[str, Callable[[], None]]:
    def kill_a_part() -> None:
        parts = family(pilot)[1:]
        if parts:
            os.kill(random.choice(parts), signal.SIGKILL)  # noqa: S311

    def restart_the_gateway() -> None:
        gateway.stop()
        gateway.start()

    def silence() -> None:
        site.link.blackhole()
        select.select([], [], [], 3)
        site.link.up()

    def unplug() -> None:
        site.link.down()
        select.select([], [], [], 2)
        site.link.up()

    return {
        "kill -9 of engine or broker": kill_a_part,
        "gateway killed and started": restart_the_gateway,
        "link silent for 3 s": silence,
        "link down for 2 s": unplug,
    }


if __name__ == "__main__":
    sys.exit(main())
