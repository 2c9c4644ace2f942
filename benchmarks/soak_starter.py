"""Stands for a starter inside `htcondor-vpn run`: one job with a little traffic, through hook and wrapper.

Usage: soak_starter AD_FILE BYTES ADDRESS KILLED; KILLED is who is killed (SIGKILL) once the job has its bytes: `job`,
`wrapper`, `starter` or nobody. Exits with 0 when all was as it should be.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

#: Says its number when it has what it asked the HTTP server for, and then waits to be killed, or to be let go.
_JOB = """
exec 3<>"/dev/tcp/$1/80"
printf 'GET /bytes/%s HTTP/1.0\\r\\n\\r\\n' "$0" >&3
got=$(wc -c <&3)
exec 3>&-
[ "$got" -gt "$0" ] && echo $$
read -r word
"""


def main(ad_file: str, size: str, address: str, killed: str) -> int:
    libexec = Path(os.environ["HTCONDOR_VPN_RUN_DIR"]) / "libexec"
    hook = subprocess.run(
        [str(libexec / "prepare-job")], input=Path(ad_file).read_bytes(), stdout=subprocess.PIPE, check=True
    )
    if hook.stdout:
        print(hook.stdout.decode(), file=sys.stderr)
        return 1
    argv = [str(libexec / "job-wrapper"), "bash", "-c", _JOB, size, address]
    wrapper = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert wrapper.stdin is not None
    assert wrapper.stdout is not None
    said = wrapper.stdout.readline()
    if not said:
        return 1
    if killed:
        os.kill({"job": int(said), "wrapper": wrapper.pid, "starter": os.getpid()}[killed], signal.SIGKILL)
    else:
        wrapper.stdin.write(b"go\n")
        wrapper.stdin.flush()
    return int(wrapper.wait() != (-signal.SIGKILL if killed else 0))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
