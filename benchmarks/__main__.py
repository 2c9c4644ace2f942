"""`python -m benchmarks [--json FILE] [--only PART]`: runs the parts in the sandbox, as an ordinary user."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from benchmarks import (
    connects,
    glidein,
    job_counting,
    job_network,
    job_policy,
    many_pilots,
    pilot,
    shaping,
    throughput,
    wireguard,
    workers,
)
from htcondor_vpn.errors import VpnError
from htcondor_vpn.testbed import sandbox
from htcondor_vpn.testbed.report import Report

#: What measures each part, given the report, how often each cell is measured, and seconds for each transfer.
PARTS: dict[str, Callable[[Report, int, int], None]] = {
    "pilot": pilot.measure,
    "job-network": job_network.measure,
    "job-counting": job_counting.measure,
    "job-policy": job_policy.measure,
    "shaping": shaping.measure,
    "shaping-cost": shaping.measure_cost,
    "line-rate": throughput.line_rate,
    "far": throughput.far,
    "unshaped": throughput.unshaped,
    "workers": workers.measure,
    "connects": connects.measure,
    "many-pilots": many_pilots.measure,
    "wireguard-gateway": wireguard.measure,
    "glidein": glidein.measure,
}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows to FILE too")
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part alone; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="how often each cell is measured (default: 5)")
    parser.add_argument("--seconds", type=int, default=2, help="how long each transfer is measured (default: 2)")
    args = parser.parse_args()
    parts = args.only or list(PARTS)
    name = datetime.date.today().isoformat() + ("" if parts == list(PARTS) else "-" + "-".join(parts))
    outputs = [RESULTS / f"{name}.json", *([args.json] if args.json else [])]
    if not sandbox.inside():
        RESULTS.mkdir(exist_ok=True)
        for path in outputs:
            sandbox.reserve_output(path)
        return sandbox.exec_inside([sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    report = Report("htcondor_vpn: what it costs, and what it carries")
    about = _about(args.rounds)
    with sandbox.open_output(outputs[0]) as file:
        for part in parts:
            PARTS[part](report, args.rounds, args.seconds)
            _write(file, about, report)
    report.conclude()
    for path in outputs[1:]:
        with sandbox.open_output(path) as file:
            report.write(file)
    return 0 if report.ok else 1


def _write(file: TextIO, about: dict[str, object], report: Report) -> None:
    """Writes what has been measured so far: a later part may break off."""
    file.seek(0)
    file.truncate()
    json.dump({**about, "ok": report.ok, "rows": [asdict(row) for row in report.rows]}, file, indent=2)
    file.write("\n")
    file.flush()


def _about(rounds: int) -> dict[str, object]:
    """What a reader has to know of the run; `load` is what the machine did in the minute before."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "kernel": platform.release(),
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "rounds": rounds,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VpnError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
