"""Runs inside `htcondor-vpn run`: as many jobs as each line of its standard input says; a line when they have ended.

Usage: inside_jobs_soak ADDRESS SEED. First it prints the broker's process id, then a JSON object for each line: how
many jobs were `killed`, how many `failed`, and how many `told` their bytes by chirp. Some jobs run alone, others at
once. Standard library alone, as it stands for HTCondor.
"""

from __future__ import annotations

import json
import os
import random
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.inside_pilot import broker

#: How many jobs run at once, batch after batch.
_BATCHES = (1, 1, 1, 8, 1, 4)
_BYTES = 20_000
_KILLED = ("job", "wrapper", "starter")
#: This part of the jobs is killed.
_KILLED_PART = 0.1

_STARTER = Path(__file__).with_name("soak_starter.py")
_AD = 'MyType = "Job"\nGlobalJobId = "ap#{}.0#1"\nOwner = "user{}"\nVpnBandwidthMbps = {}\nVpnFlightRecorder = true\n'


class Chirp(socketserver.ThreadingTCPServer):
    """Says yes to every line, as starters do, and counts the jobs that say what they have received."""

    daemon_threads = True
    told = 0
    lock = threading.Lock()


class _Talk(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Chirp)
        for line in self.rfile:
            words = line.split()
            if words[:2] == [b"set_job_attr_delayed", b"ChirpNetworkBytesIn"] and int(words[2]) > _BYTES:
                with self.server.lock:
                    self.server.told += 1
            self.wfile.write(b"0\n")


def batches(count: int) -> Iterator[int]:
    """Sizes of batches that are `count` together."""
    number = 0
    while count:
        size = min(_BATCHES[number % len(_BATCHES)], count)
        yield size
        count -= size
        number += 1


class Jobs:
    """Starts jobs; `scratch` is for their ads."""

    def __init__(self, address: str, scratch: Path, dice: random.Random) -> None:
        self._address, self._scratch, self._dice = address, scratch, dice
        self._number = 0
        self.killed = self.failed = 0

    def run(self, size: int) -> None:
        """Runs so many at once to their ends."""
        started = [self._start() for _ in range(size)]
        for killed, starter in started:
            wanted = -9 if killed == "starter" else 0
            self.failed += starter.wait(120) != wanted
            self.killed += bool(killed)

    def _start(self) -> tuple[str, subprocess.Popen[bytes]]:
        self._number += 1
        dice = self._dice
        killed = dice.choice(_KILLED) if dice.random() < _KILLED_PART else ""
        ad = self._scratch / f"ad{self._number % 100}"
        ad.write_text(_AD.format(self._number, dice.randrange(20), dice.randrange(50, 90)))
        environ = {**os.environ, "_CONDOR_JOB_AD": str(ad)}
        argv = [sys.executable, "-IS", str(_STARTER), str(ad), str(_BYTES), self._address, killed]
        return killed, subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL)


def main(address: str, seed: int) -> None:
    print(broker(), flush=True)
    with tempfile.TemporaryDirectory() as scratch, Chirp(("127.0.0.1", 0), _Talk) as chirp:
        threading.Thread(target=chirp.serve_forever, daemon=True).start()
        config = Path(scratch, ".chirp.config")
        config.write_text(f"127.0.0.1 {chirp.server_address[1]} cookie\n")
        os.environ |= {"_CONDOR_CHIRP_CONFIG": str(config), "_CONDOR_SCRATCH_DIR": scratch}
        jobs = Jobs(address, Path(scratch), random.Random(seed))
        for line in sys.stdin:
            for size in batches(int(line)):
                jobs.run(size)
            print(json.dumps({"killed": jobs.killed, "failed": jobs.failed, "told": chirp.told}), flush=True)
        chirp.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
