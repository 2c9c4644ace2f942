"""Names, when others ask for them as well."""

import sys
from pathlib import Path

from shell_pilot import ShellPilot, wait_until

from htcondor_vpn.addresses import PILOT_V4
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.gateway import SiteGateway

HERE = Path(__file__).parent

#: Asks without end for a name that is never answered, many times at once, and writes into FILE when it has begun.
FLOOD = rf"""
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("{PILOT_V4}", 53))
name = b"".join(bytes([len(label)]) + label for label in b"silent.{plan.ZONE}".split(b".")) + b"\0"
for number in range(1 << 30):
    sock.send(number.to_bytes(4, "big")[2:] + b"\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1")
    if number == 3000:
        open(sys.argv[1], "w").close()
    if number > 2000:
        time.sleep(0.002)
"""


def test_a_job_that_asks_without_end_delays_nobody_else(site, services, tmp_path):
    with SiteGateway(site.dmz, tmp_path) as gateway:
        pilot = ShellPilot(site, gateway, tmp_path)
        try:
            scratch, begun = tmp_path / "scratch", tmp_path / "scratch" / "begun"
            scratch.mkdir()
            (scratch / ".job.ad").write_text('MyType = "Job"\nRequestCpus = 1\n')
            (tmp_path / "flood.py").write_text(FLOOD)
            job = f"{sys.executable} {tmp_path / 'flood.py'} {begun}"
            starter = f"{sys.executable} {HERE}/fake_starter.py $HTCONDOR_VPN_RUN_DIR/libexec {scratch}"
            pilot.ask(f"{starter} {job} > {tmp_path}/job.log 2>&1 & echo")
            wait_until(begun.exists, 60)
            for number in range(10):  # names that nobody has in a cache
                asked = f"{number}.any.{plan.ZONE}"
                assert str(plan.WORLD["http"].v4) in pilot.ask(f"getent ahostsv4 {asked}", 20)
        finally:
            pilot.kill()
