"""The advertiser and a startd before HTCondor 25, which has to be told by a signal to send its ads at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from htcondor_vpn.condor.programs import write_programs
from htcondor_vpn.publish import advertiser

#: Starts the advertiser as a startd does, and tells what it got: text first, and no signal while it has not read that.
STARTD = """
import ctypes, json, os, select, signal, subprocess, sys

ctypes.CDLL(None).prctl(15, b"condor_startd")  # PR_SET_NAME
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
got = lambda seconds: signal.sigtimedwait([signal.SIGHUP], seconds) is not None
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as cron:
    select.select([cron.stdout], [], [])
    told = {"before": got(1)}
    if not told["before"]:
        told["text"] = os.read(cron.stdout.fileno(), 65536).decode()
        told["after"] = got(60)
    cron.kill()
print(json.dumps(told))
"""


def test_the_startd_is_told_once_it_has_read(tmp_path: Path) -> None:
    write_programs(tmp_path / "libexec", {"advertise": Path(advertiser.__file__).parent}, 0o700)
    state = {"version": 1, "pid": os.getpid(), "state": "down", "since": 1700000000.5, "updated": time.time()}
    (tmp_path / "state.json").write_text(json.dumps(state))
    argv = [sys.executable, "-c", STARTD, str(tmp_path / "libexec/advertise"), "--reconfigure"]
    told = json.loads(subprocess.run(argv, capture_output=True, timeout=120, check=True).stdout)
    assert told.pop("text").endswith("- update:true\n")
    assert told == {"before": False, "after": True}
