"""Runs inside `htcondor-vpn run`: times jobs with a network of their own against jobs without. Prints JSON, seconds.

Standard library alone, as it stands for a starter: a hook and a wrapper for each job, an ad, and a chirp server.
"""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

JOB = ["/bin/true"]
AD = 'MyType = "Job"\nVpnBandwidthMbps = 100\nOwner = "someone"\n' + "".join(
    f'Attribute{n} = "a job ad has some two hundred attributes"\n' for n in range(200)
)


class Chirp(socketserver.StreamRequestHandler):
    """Says yes to every line, as a starter does to a cookie and to set_job_attr_delayed."""

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"0\n")


def timed(argv: list[str], environment: dict[str, str], ad: str = "") -> float:
    begin = time.perf_counter()
    subprocess.run(argv, env=environment, input=ad.encode(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main(rounds: int, together: int) -> None:
    libexec = Path(os.environ["HTCONDOR_VPN_RUN_DIR"]) / "libexec"
    with tempfile.TemporaryDirectory() as scratch, socketserver.ThreadingTCPServer(("127.0.0.1", 0), Chirp) as chirp:
        threading.Thread(target=chirp.serve_forever, daemon=True).start()
        config, ad = Path(scratch, ".chirp.config"), Path(scratch, ".job.ad")
        config.write_text(f"127.0.0.1 {chirp.server_address[1]} cookie\n")
        ad.write_text(AD)
        environment = {
            "PATH": os.environ["PATH"],
            "_CONDOR_CHIRP_CONFIG": str(config),
            "_CONDOR_JOB_AD": str(ad),
            "_CONDOR_SCRATCH_DIR": scratch,
        }

        def plain(_: int) -> float:
            return timed(JOB, environment)

        def networked(_: int) -> float:
            begin = time.perf_counter()
            timed([str(libexec / "prepare-job")], environment, AD)
            timed([str(libexec / "job-wrapper"), *JOB], environment)
            return time.perf_counter() - begin

        for warm_up in (plain, networked):
            warm_up(0)
        alone: dict[str, list[float]] = {"plain": [], "networked": []}
        for n in range(rounds):
            alone["plain"].append(plain(n))
            alone["networked"].append(networked(n))
        with ThreadPoolExecutor(together) as pool:
            at_once = {name: list(pool.map(work, range(together))) for name, work in
                       (("plain", plain), ("networked", networked))}  # fmt: skip
        chirp.shutdown()
    json.dump({"alone": alone, "at_once": at_once}, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
