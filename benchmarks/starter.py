"""Stands for a starter inside `htcondor-vpn run`: waits for a line, then runs and times the parts of one job.

Usage: starter AD_FILE PART…; prints JSON, seconds by part. Each job has a starter of its own, as with HTCondor: what
the broker decides belongs to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

JOB = ["/bin/true"]


def main(ad: bytes, parts: list[str]) -> None:
    libexec = Path(os.environ["HTCONDOR_VPN_RUN_DIR"]) / "libexec"
    argv = {
        "plain": JOB,
        "interpreter": [str(libexec / "python"), "-IS", "-c", "pass"],
        "hook": [str(libexec / "prepare-job")],
        "wrapper": [str(libexec / "job-wrapper"), *JOB],
    }
    sys.stdin.readline()
    seconds = {}
    for part in parts:
        begin = time.perf_counter()
        subprocess.run(argv[part], input=ad if part == "hook" else b"", stdout=subprocess.DEVNULL, check=True)
        seconds[part] = time.perf_counter() - begin
    json.dump(seconds, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_bytes(), sys.argv[2:])
