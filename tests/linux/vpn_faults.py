"""What the tests of packet VPNs share: a connection that outlives faults, and faults."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.services.oddities import ECHO_PORT

HERE = Path(__file__).parent
ECHO = plan.WORLD["http"]


class HeldFlow:
    """A connection inside that outlives what the test does: `held_flow.py`, with its input and output in `folder`."""

    def __init__(self, pilot, folder):
        self.pilot, self.said, self.told = pilot, folder / "said", folder / "told"
        self.said.touch()
        os.mkfifo(self.told)
        command = f"{sys.executable} {HERE}/held_flow.py {ECHO.v4} {ECHO_PORT}"
        pilot.ask(f"{command} < {self.told} > {self.said} & exec 9> {self.told}")
        wait_for_log(self.said, b"^open$", pilot.process)

    def end(self):
        self.pilot.ask("echo go >&9")
        return wait_for_log(self.said, b"^open\n(.*)\n", self.pilot.process, timeout_seconds=120)[1].decode()


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def udp_is_blocked(site):
    rules = "table inet block { chain out { type filter hook output priority 0; meta l4proto udp drop; }; }\n"
    site.node.run(["nft", "-f", "-"], stdin=rules, as_root=True, check=True)
    try:
        yield
    finally:
        site.node.run(["nft", "delete", "table", "inet", "block"], as_root=True, check=True)
