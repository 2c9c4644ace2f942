"""Job networks under real starters: a pilot on the node, whose tunnel leads to the gateway in the DMZ."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import tempfile
from pathlib import Path

import pytest
from resends import payload
from tunnelled_pilot import resends_to_jobs, tunnelled_pilot

from htcondor_vpn.linux.programs import ProgramFailed
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.headers import payload_bytes
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.pool import ABORTED, EXECUTING, WAIT_SECONDS
from htcondor_vpn.testbed.rates import assert_rate

HELPERS = Path(__file__).parents[1] / "linux"
CLIENT = (HELPERS / "traffic_client.py").read_text()
NAME = "jobnet"

#: HTCondor's hold code for a hook's word (HookPrepareJobFailure).
HELD_BY_HOOK = 19

#: The job event in which a starter tells of an error.
REMOTE_ERROR = 21


@pytest.fixture(scope="module")
def pilot(site, pool, gateway, tmp_path_factory):
    """A pilot with the project's configuration whose tunnel is up."""
    knobs = "HTCONDOR_VPN_JOB_MAX_MBPS = 400", "STARTER_UPDATE_INTERVAL = 2"
    with tunnelled_pilot(site, pool, gateway, tmp_path_factory.mktemp("pilot"), NAME, *knobs) as config:
        yield config


def submit(pool, script, **more):
    return pool.submit(
        {"executable": "job.sh", "transfer_input_files": "traffic_client.py", **more},
        {"job.sh": f"#!/bin/sh\n{script}\n", "traffic_client.py": CLIENT},
    )


def client(verb, size, address):
    return f"{sys.executable} traffic_client.py {verb} {size} {address}"


def test_bytes_are_in_the_history_and_the_exit_code_is_the_jobs(pool, pilot, far_side):
    down, up = 20_000_000, 10_000_000
    with resends_to_jobs(pilot) as resends:
        cluster = submit(pool, f"{client('get', down, far_side)} && {client('put', up, far_side)}; exit 7")
        ad = pool.wait_for_history(cluster)
        assert ad["ExitCode"] == 7, pool.file(cluster, "err.0")
        assert payload_bytes(ad, "In") == payload(down, resends.segments())
    assert payload_bytes(ad, "Out") == payload(up, int(pool.file(cluster, "out.0").split()[-1]))
    # the access point of this pool keeps the older names too
    assert ad["NetworkInputMb"] == pytest.approx(ad["ChirpNetworkBytesIn"] / 1e6)
    assert ad["NetworkOutgoingExternal"] == ad["ChirpNetworkBytesOut"]


@pytest.mark.parametrize("verb", ["get", "put"])
def test_rate_that_a_job_asks_for(pool, pilot, far_side, verb):
    mbps, size = 50, 12_500_000

    def measure():
        cluster = submit(pool, client(verb, size, far_side), **{"+VpnBandwidthMbps": str(mbps)})
        assert pool.wait_for_history(cluster)["ExitCode"] == 0, pool.file(cluster, "err.0")
        return size * 8 / float(pool.file(cluster, "out.0").split()[0]) / 1e6

    assert_rate(measure, mbps)


def test_requests_that_make_no_sense_hold_their_jobs(pool, pilot):
    wanted = {"-5": (2, "-5"), "0": (2, "0"), '"much"': (1, "much"), "401": (4, "400 Mbit/s"), "1e400": (1, "VpnBand")}
    clusters = {asked: submit(pool, "true", **{"+VpnBandwidthMbps": asked}) for asked in wanted}
    for asked, (sub_code, word) in wanted.items():
        ad = pool.wait_for_hold(clusters[asked])
        assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (HELD_BY_HOOK, sub_code)
        assert word in ad["HoldReason"]
        pool.remove(clusters[asked])


def test_totals_while_the_job_runs(pool, pilot, far_side):
    cluster = submit(pool, f"{client('get', 5_000_000, far_side)}; exec sleep 1000")
    wait_until(
        "the bytes of the running job",
        WAIT_SECONDS,
        lambda: next((ad for ad in [pool.queue(cluster)] if ad and ad.get("ChirpNetworkBytesIn", 0) >= 5e6), None),
    )
    pool.remove(cluster)


def test_removed_job_is_told_and_counted(pool, pilot, far_side):
    script = f"trap 'exit 3' TERM; {client('get', 3_000_000, far_side)}; touch done; while :; do sleep 0.1; done"
    cluster = submit(pool, script)
    wait_until("the transfer", WAIT_SECONDS, lambda: _session(pool, cluster, "cat done && echo there"))
    pool.remove(cluster)
    pool.wait_for_event(cluster, ABORTED)
    ad = pool.wait_for_history(cluster)
    assert ad["ChirpNetworkBytesIn"] >= 3_000_000


def _session(pool, cluster, command):
    try:
        return pool.ssh_to_job(cluster, command)
    except ProgramFailed:
        return None


def test_chirp_and_ssh_in_the_jobs_network(pool, pilot):
    chirp = pilot.prefix / "usr/libexec/condor/condor_chirp"
    script = f"readlink /proc/self/ns/net; {chirp} set_job_attr_delayed ChirpMine 42; exec sleep 1000"
    cluster = submit(pool, script, stream_output="true")
    pool.wait_for_event(cluster, EXECUTING)
    inside = wait_until("the job's namespace", WAIT_SECONDS, lambda: _said(pool, cluster))
    assert pool.ssh_to_job(cluster, "readlink /proc/self/ns/net").strip() == inside
    pool.remove(cluster)
    assert pool.wait_for_history(cluster)["ChirpMine"] == 42


def test_job_goes_on_while_the_broker_is_replaced(pool, pilot, far_side, site):
    size = 5_000_000
    script = f"{client('get', size, far_side)}; while [ ! -e go ]; do sleep 0.1; done; {client('get', size, far_side)}"
    with resends_to_jobs(pilot) as resends:
        cluster = submit(pool, script, stream_output="true", **{"+VpnBandwidthMbps": "100"})
        wait_until("the first transfer", WAIT_SECONDS, lambda: _said(pool, cluster))
        (path,) = Path(tempfile.gettempdir()).glob("htcondor-vpn-*/broker.sock")
        killed = _listener(path)
        os.kill(killed, signal.SIGKILL)
        wait_until("another broker", 60, lambda: _listener(path) not in (None, killed) or None)
        pool.ssh_to_job(cluster, "touch go")
        ad = pool.wait_for_history(cluster)
        assert ad["ExitCode"] == 0
        assert payload_bytes(ad, "In") == payload(2 * size, resends.segments())


def _said(pool, cluster):
    """What a job with `stream_output` has printed so far, None if it is nothing."""
    try:
        return pool.file(cluster, "out.0").decode().strip() or None
    except FileNotFoundError:
        return None


def _listener(path):
    """The process that listens on a UNIX socket, None if none does."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return None
        return struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def test_pool_reaches_the_pilot_again_soon_after_its_engine_died(pilot):
    """HTCondor alone leaves the pool without a way to the pilot for a minute."""
    (path,) = Path(tempfile.gettempdir()).glob("htcondor-vpn-*/broker.sock")
    broker = _listener(path)
    supervisor = int(Path(f"/proc/{broker}/stat").read_text().rpartition(")")[2].split()[1])
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    own = [int(pid) for pid in children if b"condor_master" not in Path(f"/proc/{pid}/comm").read_bytes()]
    log = pilot.folder / "log" / "SharedPortLog"
    seen_bytes = log.stat().st_size
    for engine in set(own) - {broker}:
        os.kill(engine, signal.SIGKILL)
    wait_for_log(log, b"CCBListener: registered with CCB server", start_bytes=seen_bytes, timeout_seconds=40)


def test_death_by_signal_is_the_jobs(pool, pilot):
    cluster = submit(pool, "kill -SEGV $$")
    ad = pool.wait_for_history(cluster)
    assert ad["ExitBySignal"]
    assert ad["ExitSignal"] == signal.SIGSEGV


def test_job_goes_back_to_the_queue_when_its_wrapper_cannot_run_it(pool, pilot):
    """A job whose executable does not exist on the node does not count as run."""
    cluster = pool.submit({"executable": "/no/such/program", "transfer_executable": "false"})
    event = pool.wait_for_event(cluster, REMOTE_ERROR)
    assert "/no/such/program cannot be executed" in event.text
    pool.remove(cluster)


def test_nothing_is_left(pilot):
    wait_until("no wrapper is left", 60, lambda: True if not _wrappers() else None)


def _wrappers():
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and b"job-wrapper" in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
        except OSError:
            continue  # it has just ended
    return found
