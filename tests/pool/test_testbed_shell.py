"""`htcondor-vpn testbed shell`: what the pages say of a pool and its pilots can be typed there as it is written."""

from __future__ import annotations

import os
import pty
import select
import time

from htcondor_vpn.testbed.gateway import vpn_command

SHELL = vpn_command("testbed", "shell")

#: A page's reader starts the pilot, submits a job, and looks at what came of it.
SESSION = """\
set -e
node bash pilot/pilot.slurm &
cat > job.sub <<END
executable = /usr/bin/curl
arguments = -sS http://http.site.example/bytes/1000000
transfer_executable = false
output = job.out
log = job.log
queue
END
condor_submit -terse job.sub
timeout 90 condor_wait job.log > /dev/null
condor_history -af ExitCode 'ChirpNetworkBytesIn > 1000000'
condor_status -af VpnState VpnGateway
stat --format %s job.out
node id -u
exit 7
"""


def test_a_job_on_a_pilot_that_knows_gateway_and_pool_by_their_names(site):
    done = site.node.run(SHELL, stdin=SESSION, timeout_seconds=240)
    assert done.returncode == 7, done.stderr
    cluster, job, slot, *_, size, uid = done.stdout.splitlines()
    assert cluster.startswith("1.0")
    assert job == "0 true"
    assert slot == "up gateway.example.org:8443"
    assert size == "1000000"
    assert int(uid) != 0


def test_somebody_at_a_terminal_is_told_where_he_is(site):
    controller, terminal = pty.openpty()
    process = site.node.start(SHELL, stdin=terminal, stdout=terminal)
    os.close(terminal)
    os.write(controller, b"node\necho at-$(hostname); exit\nexit 3\n")
    said, deadline = b"", time.monotonic() + 120
    while select.select([controller], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            said += os.read(controller, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            break
    assert process.wait(10) == 3, said
    assert b"gateway.example.org:8443" in said
    assert b"at-node" in said

