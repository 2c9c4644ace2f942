"""A gateway that is the right one by its key, and answers nonsense: one line, no COMMAND, and an end in time."""

import sys
import time

import pytest
from hostile_gateway import ANSWERS

from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.logs import wait_for_log

PORT = 9443
#: In so long it has been heard, however busy the machine is.
CONNECT_SECONDS = 5


@pytest.mark.parametrize("what", ANSWERS)
def test_nonsense_is_no_gateway(site, gateway, tmp_path, what):
    from hostile_gateway import __file__ as script

    log = tmp_path / "log"
    log.touch()
    address, folder = str(plan.DMZ_INSIDE.v4), gateway.state_folder
    files = [str(folder / "gateway.crt"), str(folder / "gateway.key")]
    hostile = site.dmz.start([sys.executable, script, address, str(PORT), *files, what], log=log)
    wait_for_log(log, b"^ready$", hostile)
    knobs = (f"HTCONDOR_VPN_CONNECT_TIMEOUT={CONNECT_SECONDS}", "HTCONDOR_VPN_PROBE_TIMEOUT=0.5")
    options = ["--gateway", f"{address}:{PORT}", *(word for knob in knobs for word in ("--set", knob))]
    begin = time.monotonic()
    done = site.node.run(gateway.run_argv(["echo", "ran"], *options))
    seconds = time.monotonic() - begin
    hostile.kill()
    hostile.wait()
    assert (done.returncode, done.stdout) == (69, "")
    (line,) = done.stderr.splitlines()
    assert f"the gateway {address}:{PORT} " in line
    assert seconds < CONNECT_SECONDS + 15
