"""Stands in for a condor_starter: runs hook or wrapper as its children, and answers chirp on its loopback.

Usage: fake_starter.py LIBEXEC SCRATCH COMMAND ARGUMENT…  (the wrapper), or  fake_starter.py LIBEXEC SCRATCH --hook NAME
or  fake_starter.py LIBEXEC SCRATCH --prepared SECONDS COMMAND ARGUMENT…  (the prepare hook; another job ad, `later.ad`
in SCRATCH, as a file transfer may bring it; SECONDS, or until there is a file `go`; the wrapper). The slot's ad is
`.machine.ad` in SCRATCH.
Prints one JSON object: the wait status of its child, its output, what was chirped, and the milliseconds it took.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

COOKIE = "c00kie"


def serve_chirp(listener: socket.socket, told: dict[str, str]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_talk, args=(connection, told), daemon=True).start()


def _talk(connection: socket.socket, told: dict[str, str]) -> None:
    welcome = False
    with connection, connection.makefile("rwb", buffering=0) as lines:
        for line in lines:
            verb, *words = line.decode().split()
            if verb == "cookie":
                welcome = words == [COOKIE]
            elif welcome and verb == "set_job_attr_delayed":
                told[words[0]] = " ".join(words[1:])
            lines.write(b"0\n" if welcome else b"-1\n")


def prepare(libexec: Path, scratch: Path, environ: dict[str, str], seconds: float) -> None:
    """Runs the prepare hook, then brings the job's files; a hook with something to say ends it all."""
    ad = (scratch / ".job.ad").read_bytes()
    done = subprocess.run(
        [str(libexec / "prepare-job")], env=environ, cwd=scratch, input=ad, capture_output=True, timeout=100, check=True
    )
    if done.stdout:
        print(json.dumps({"status": -1, "out": done.stdout.decode(), "err": done.stderr.decode()}))
        raise SystemExit(0)
    if (scratch / "later.ad").exists():
        (scratch / "later.ad").rename(scratch / ".job.ad")
    (scratch / "prepared").touch()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (scratch / "go").exists():
        time.sleep(0.02)


def main() -> None:
    libexec, scratch, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    told: dict[str, str] = {}
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_chirp, args=(listener, told), daemon=True).start()
    config = scratch / ".chirp.config"
    config.write_text(f"127.0.0.1 {listener.getsockname()[1]} {COOKIE}\n")
    environ = {
        "PATH": os.environ["PATH"],
        "_CONDOR_SCRATCH_DIR": str(scratch),
        "_CONDOR_CHIRP_CONFIG": str(config),
        "_CONDOR_JOB_AD": str(scratch / ".job.ad"),
        "_CONDOR_MACHINE_AD": str(scratch / ".machine.ad"),
        "_CONDOR_WRAPPER_ERROR_FILE": str(scratch / ".job_wrapper_failure"),
    }
    if command[0] == "--prepared":
        prepare(libexec, scratch, environ, float(command[1]))
        command = command[2:]
    hook = command[0] == "--hook"
    argv = [str(libexec / command[1])] if hook else [str(libexec / "job-wrapper"), *command]
    stdin = (scratch / ".job.ad").read_bytes() if hook else b""

    def tell_pids() -> None:  # before the child is what it will be, so that who sees anything of that knows them
        (scratch / "pids").write_text(f"{os.getppid()} {os.getpid()}")

    begin = time.perf_counter()
    child = subprocess.Popen(
        argv, env=environ, cwd=scratch, preexec_fn=tell_pids,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = child.communicate(stdin, timeout=100)
    took_ms = (time.perf_counter() - begin) * 1e3
    print(
        json.dumps(
            {
                "status": child.returncode,
                "out": out.decode(),
                "err": err.decode(),
                "chirped": told,
                "took_ms": took_ms,
            }
        )
    )


if __name__ == "__main__":
    main()
