"""`python -m benchmarks.soak [--minutes N | --jobs N]`: what must not show after minutes only.

By default transfers without end, both ways, while the tunnel meets faults at random: nothing ever arrives wrong,
transfers go on after every fault, nothing leaks, nothing grows. With `--jobs`, so many jobs through one pilot's broker
(`jobs_soak`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import sys
import time
from collections import Counter

from benchmarks import jobs_soak
from benchmarks.faults import OTHER_ADDRESS, Faults
from benchmarks.processes import family, pss_bytes
from htcondor_vpn.testbed import plan, sandbox
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.logs import Ledger
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.services import WorldServices, payload, url
from htcondor_vpn.testbed.services.oddities import ECHO_PORT
from htcondor_vpn.testbed.site import Site

SIZES = (1, 1000, 100_000, 3_000_000, 30_000_000)
WORKERS = 6
_JOBS = 2000
#: What a router says of packets that are too large (`Faults`).
_TOLD = {
    f"IPv4 {plan.DMZ_INSIDE.v4} > {node} protocol 1" for node in (plan.NODE.v4, OTHER_ADDRESS)
}  # fmt: skip
RECOVERY_SECONDS = 30
_INSIDE = """
import hashlib, json, os, socket, sys, time, urllib.request
sizes, digests, log, seed = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
way.settimeout(5)

def download(size):
    body = urllib.request.urlopen(f"{URL}/bytes/{size}", timeout=20).read()
    return hashlib.sha256(body).hexdigest() == digests[str(size)]

def upload(size):
    body = os.urandom(size)
    told = json.load(urllib.request.urlopen(f"{URL}/upload", body, timeout=20))
    return told["sha256"] == hashlib.sha256(body).hexdigest()

def echo(size):
    sent = os.urandom(8 + size % 9000)
    way.sendto(sent, ECHO)
    while (got := way.recv(10000))[:8] != sent[:8]: pass  # late answers of earlier ones
    return got == sent

while True:
    seed += 1
    size = sizes[seed % len(sizes)]
    try:
        word = "good" if (download, upload, echo)[seed % 3](size) else "wrong"
    except Exception as error:
        word = "failed"
        time.sleep(0.2)
    with open(log, "a") as file:
        file.write(json.dumps({"word": word, "size": size, "time": time.time()}) + "\\n")
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak ARGS=…", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--jobs", type=int, nargs="?", const=_JOBS, help=f"instead: so many jobs (default: {_JOBS})")
    parser.add_argument("--seed", type=int, default=None, help="repeats the faults of another run")
    args = parser.parse_args()
    if not sandbox.inside():
        return sandbox.exec_inside([sys.executable, "-m", "benchmarks.soak", *sys.argv[1:]])
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    if args.jobs:
        report = Report(f"htcondor_vpn: {args.jobs} jobs through one pilot, seed {seed}")
        jobs_soak.soak(report, args.jobs, seed)
    else:
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
            faults = Faults(site, gateway, pilot.pid, dice).all()
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
        leaked = Counter(str(packet) for packet in capture.foreign if str(packet) not in _TOLD)
        report.add("packets neither to nor from the gateway", not leaked, sum(leaked.values()), "", "0")
        for packet, count in leaked.most_common(10):
            report.add(packet, False, count, "times", "never")
        left = set(site.processes()) - before
        report.add("processes left behind", not left, len(left), "", "0")


def _start(site: Site, gateway: SiteGateway, ledger: Ledger):  # type: ignore[no-untyped-def]
    code = f"URL, ECHO = {url('')!r}, {(str(plan.WORLD['http'].v4), ECHO_PORT)!r}\n{_INSIDE}"
    (site.folder / "transfer.py").write_text(code)
    digests = json.dumps({size: payload.sha256(size) for size in SIZES})
    worker = f"{sys.executable} {site.folder}/transfer.py '{json.dumps(SIZES)}' '{digests}' {ledger.file}"
    script = "".join(f"{worker} {n * 1000} & " for n in range(WORKERS)) + "wait"
    log = site.folder / "soak.log"
    return site.node.start(gateway.run_argv(["sh", "-c", script]), log=log)


if __name__ == "__main__":
    sys.exit(main())
