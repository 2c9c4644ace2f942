"""Runs beside a pilot, on its node as its user: what counting costs a job of its, whose traffic the engine carries.

Usage: inside_counted_pilot PID ADDRESS PORT WAY FLOWS PAIRS JOB_AD, PID being a process of the pilot's inner
namespaces. Prints JSON, `Rates`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.counted_turns import in_turns
from htcondor_vpn.linux.namespaces import KINDS, setns


def main(pid: int, address: str, port: int, way: str, flows: int, pairs: int, ad: str) -> None:
    environ = _environment(pid)
    for namespace in [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in KINDS]:
        setns(namespace)
        os.close(namespace)
    libexec = Path(environ["HTCONDOR_VPN_RUN_DIR"], "libexec")
    with tempfile.TemporaryDirectory() as scratch:
        ad = f'Owner = "someone"\n{ad}\n'
        Path(scratch, ".job.ad").write_text(ad)
        environ |= {"_CONDOR_JOB_AD": f"{scratch}/.job.ad", "_CONDOR_SCRATCH_DIR": scratch}
        prepare = [str(libexec / "prepare-job")]
        said = subprocess.run(prepare, env=environ, input=ad, text=True, stdout=subprocess.PIPE, check=True).stdout
        if said:
            raise RuntimeError(f"the job may not run: {said}")

        def start(argv: list[str]) -> subprocess.Popen[str]:
            wrapped = [str(libexec / "job-wrapper"), *argv]
            return subprocess.Popen(wrapped, env=environ, stdout=subprocess.PIPE, text=True)

        rates = in_turns(start, address, port, way, flows, pairs)
    json.dump(rates, sys.stdout)


def _environment(pid: int) -> dict[str, str]:
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(variable.partition("=")[::2] for variable in variables if variable)


if __name__ == "__main__":
    number, address, port, way, flows, pairs, ad = sys.argv[1:]
    main(int(number), address, int(port), way, int(flows), int(pairs), ad)
