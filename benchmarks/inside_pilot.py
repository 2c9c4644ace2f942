"""Runs inside `htcondor-vpn run`: times jobs with a network of their own, alone, at once, and among others that run.

Usage: inside_pilot JOBS AT_ONCE JOBS_AMONG OTHERS ADDRESS. Prints JSON, for each case a list of what `starter`
prints, and of the broker's processor time. The others have talked to some ports of ADDRESS, and idle. Standard library
alone, as it stands for HTCondor: starters with an ad for each job, and a chirp server.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

AD = 'MyType = "Job"\nVpnBandwidthMbps = 100\nOwner = "someone"\n' + "".join(
    f'Attribute{n} = "a job ad has some two hundred attributes"\n' for n in range(200)
)
PARTS = ("plain", "interpreter", "hook", "wrapper")

_STARTER = Path(__file__).with_name("starter.py")
_OTHER = 'for n in {1..10}; do echo >"/dev/udp/$0/$((9000 + n))"; done; echo running; exec sleep infinity'

Seconds = dict[str, float]


class Chirp(socketserver.StreamRequestHandler):
    """Says yes to every line, as a starter does to a cookie and to set_job_attr_delayed."""

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"0\n")


def broker() -> int:
    """The broker's process: the kernel says who listens at its socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.path.join(os.environ["HTCONDOR_VPN_RUN_DIR"], "broker.sock"))
        return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def cpu_seconds(pid: int) -> float:
    """What all its threads have taken so far, from the scheduler's own count in nanoseconds."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def one_by_one(count: int) -> list[Seconds]:
    """Runs jobs one after the other; `broker` is its processor time by job, what it does between them included."""
    pid, found = broker(), []
    for _ in range(count):
        before = cpu_seconds(pid)
        (job,) = jobs(1, PARTS)
        found.append({**job, "broker": cpu_seconds(pid) - before})
    return found


def jobs(count: int, parts: Sequence[str]) -> list[Seconds]:
    """Runs `count` jobs at once, each by a starter that has come up before."""
    argv = [sys.executable, "-IS", str(_STARTER), os.environ["_CONDOR_JOB_AD"], *parts]
    starters = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    said = []
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write(b"go\n")
        starter.stdin.flush()
    for starter in starters:
        said.append(json.loads(starter.communicate()[0]))
    return said


@contextmanager
def others(count: int, address: str) -> Iterator[None]:
    """So many jobs that run on."""
    wrapper = str(Path(os.environ["HTCONDOR_VPN_RUN_DIR"], "libexec", "job-wrapper"))
    with ExitStack() as exits:
        for _ in range(count):
            job = subprocess.Popen([wrapper, "bash", "-c", _OTHER, address], stdout=subprocess.PIPE)
            exits.callback(job.wait)
            exits.callback(job.terminate)
            assert job.stdout is not None
            if not job.stdout.readline():
                raise RuntimeError("another job does not run")
        yield


def main(alone: int, at_once: int, among: int, other: int, address: str) -> None:
    with tempfile.TemporaryDirectory() as scratch, socketserver.ThreadingTCPServer(("127.0.0.1", 0), Chirp) as chirp:
        threading.Thread(target=chirp.serve_forever, daemon=True).start()
        config, ad = Path(scratch, ".chirp.config"), Path(scratch, ".job.ad")
        config.write_text(f"127.0.0.1 {chirp.server_address[1]} cookie\n")
        ad.write_text(AD)
        os.environ |= {
            "_CONDOR_CHIRP_CONFIG": str(config), "_CONDOR_JOB_AD": str(ad), "_CONDOR_SCRATCH_DIR": scratch,
        }  # fmt: skip
        jobs(1, PARTS)  # the first finds nothing in the machine's caches
        found = {"alone": one_by_one(alone)}
        found["at_once_plain"], found["at_once"] = jobs(at_once, PARTS[:1]), jobs(at_once, PARTS[2:])
        with others(other, address):
            found["among"] = one_by_one(among)
        chirp.shutdown()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]), sys.argv[5])
