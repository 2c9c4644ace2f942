"""A whole glidein by htvpn-launch and a bundle, with a real HTCondor: it runs a job, and leaves the pool in order."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

import htcondor_vpn
from htcondor_vpn.bundle.build import build
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.pool import EXECUTING
from htcondor_vpn.testbed.services import url

LAUNCHER = Path(htcondor_vpn.__file__).parents[1] / "glidein_scripts/htvpn-launch"
NAME = "glidein"

#: As GlideinWMS' condor_startup.sh: signals go on as SIGQUIT to the process of the pid file, and nobody waits for it.
GLIDEIN = """#!/bin/bash
work=$(mktemp -d "$PWD/glide_XXXXXX")
trap 'kill -s QUIT "$(cat "$work/condor_master2.pid")"; exit 0' TERM QUIT
{master} -f -pidfile "$work/condor_master2.pid" &
wait
"""


@pytest.fixture(scope="module")
def suite():
    return "trixie"


@pytest.fixture
def glidein(site, services, pool, tmp_path):
    """A glidein on the isolated node, its folder, and that of HTCondor's logs."""
    with SiteGateway(site.dmz, tmp_path / "gateway") as gateway:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        config = pool.pilot(tmp_path / "pilot", name=NAME)
        (scratch / "glidein_startup.sh").write_text(GLIDEIN.format(master=shlex.join(config.command("condor_master"))))
        build(scratch / "htcondor-vpn.bundle", ["nft", "iptables"], with_python=False)
        (scratch / "htvpn-launch").write_bytes(LAUNCHER.read_bytes())
        (scratch / "htvpn-launch").chmod(0o755)
        (scratch / "pilot.token").write_bytes(gateway.token_file.read_bytes())
        (scratch / "htcondor-vpn.conf").write_text(
            f"HTCONDOR_VPN_GATEWAYS = {gateway.endpoints[0]}\nHTCONDOR_VPN_GATEWAY_PIN_FILE = {gateway.pin_file}\n"
        )
        environ = {"HTVPN_PYTHON": sys.executable, "HTVPN_DELETE_TOKEN": "1", "TMPDIR": str(scratch)}
        process = site.node.start(["./htvpn-launch"], cwd=scratch, env=environ, log=scratch / "log")
        yield process, scratch, config.folder / "log"
        process.kill()
        process.wait()


def test_a_job_in_a_glidein_and_its_end(site, pool, glidein):
    process, scratch, log = glidein
    pool.wait_for_startd(NAME)
    assert not (scratch / "pilot.token").exists()
    script = f"#!/bin/sh\ncurl -sS {url('/bytes/3000000')} | wc -c\n"
    cluster = pool.submit({"executable": "job.sh"}, {"job.sh": script})
    assert pool.wait_for_history(cluster)["ExitCode"] == 0
    assert pool.file(cluster, "out.0").strip() == b"3000000"
    pool.wait_for_event(pool.submit({"executable": "/bin/sleep", "arguments": "1000"}), EXECUTING)
    begin = time.monotonic()
    process.terminate()
    try:
        assert process.wait(60) == 0
    except subprocess.TimeoutExpired:
        pytest.fail((scratch / "log").read_text())
    assert time.monotonic() - begin < 40
    assert "EXITING WITH STATUS 0" in (log / "MasterLog").read_text(), "it had the time to end by itself"
    wait_until("the ads have gone", 60, lambda: pool.slots(f'regexp("{NAME}", Name)') == [] or None)
    assert [pid for pid in site.processes() if os.fsencode(scratch) in cmdline(pid)] == []


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""  # it has just ended
