"""A job's account and flight recorder, under real starters: in ads, slot, ledger and sandbox."""

import json
import sys
from pathlib import Path

import pytest
from resends import between
from tunnelled_pilot import resends_to_jobs, tunnelled_pilot

from htcondor_vpn.jobnet.counting import ledger
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.pool import EXECUTING, WAIT_SECONDS

pytest.importorskip("classad2", reason="a policy file needs HTCondor's Python bindings")
pytestmark = pytest.mark.pool

HELPERS = Path(__file__).parents[1] / "linux"
CLIENT = (HELPERS / "traffic_client.py").read_text()
NAME = "accounted"
FAR, FORBIDDEN = plan.WORLD["iperf"], plan.WORLD["http"]
SIZE = 5_000_000
POLICY = f"""
[class campus]
destinations = {FAR.v4}, {FAR.v6}

[rule all]
deny = {FORBIDDEN.v4}, {FORBIDDEN.v6}
"""


@pytest.fixture(scope="module")
def far_side(site, services):
    """A TCP server in the world that gives and takes any number of bytes."""
    peer = site.world.start([sys.executable, str(HELPERS / "traffic_peer.py"), str(FAR.v4), str(FAR.v6), "7000"])
    yield f"iperf.{plan.ZONE}"
    peer.kill()
    peer.wait()


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory):
    return tmp_path_factory.mktemp("ledgers")


@pytest.fixture(scope="module")
def pilot(site, pool, gateway, ledgers, tmp_path_factory):
    """A pilot whose policy has a class, and a destination that is forbidden."""
    folder = tmp_path_factory.mktemp("pilot")
    (folder / "policy").write_text(POLICY)
    knobs = (
        f"HTCONDOR_VPN_JOB_POLICY_FILE = {folder / 'policy'}",
        f"HTCONDOR_VPN_JOB_LEDGER_DIR = {ledgers}",
        "STARTER_UPDATE_INTERVAL = 2",
        "UPDATE_INTERVAL = 3",
    )
    with tunnelled_pilot(site, pool, gateway, folder, NAME, *knobs) as config:
        yield config


@pytest.fixture
def resends(pilot):
    """What is sent again to jobs, from the test's begin on."""
    with resends_to_jobs(pilot) as resends:
        yield resends


def test_a_job_is_accounted_for_everywhere(pool, pilot, resends, ledgers, far_side):
    client = f"{sys.executable} traffic_client.py"
    script = (
        f"#!/bin/sh\n{client} get {SIZE} {far_side}\n{client} get 1 {FORBIDDEN.v4}\n"
        f"while [ ! -e go ]; do sleep 0.2; done\n{client} put {SIZE} {far_side}\n"
    )
    cluster = pool.submit(
        {"executable": "job.sh", "transfer_input_files": "traffic_client.py", "+VpnFlightRecorder": "true"},
        {"job.sh": script, "traffic_client.py": CLIENT},
    )
    pool.wait_for_event(cluster, EXECUTING)

    def slot():
        found = pool.slots(f'regexp("@{NAME}@", Name) && VpnJobBytesIn >= {SIZE}')
        return found[0] if found else None

    busy = wait_until("the slot's word about its job", WAIT_SECONDS, slot)
    assert busy["Name"].startswith("slot1_")
    assert busy["VpnJobConnections"] == 1
    assert not pool.slots(f'Name == "slot1@{NAME}@testbed" && VpnJobBytesIn isnt undefined')
    pool.ssh_to_job(cluster, "touch go")
    ad = pool.wait_for_history(cluster)
    for way, resent in (("In", resends.segments()), ("Out", int(pool.file(cluster, "out.0").split()[-1]))):
        assert ad[f"ChirpNetworkCampusBytes{way}"] == between(SIZE, 1.05 * SIZE, resent)
        parts = ad[f"ChirpNetworkCampusBytes{way}"] + ad[f"ChirpNetworkOtherBytes{way}"]
        assert parts == ad[f"ChirpNetworkBytes{way}"]
    assert ad["ChirpNetworkCampusConnections"] == 2
    assert ad["NetworkIncomingInternal"] == ad["ChirpNetworkCampusBytesIn"]
    assert ad["ChirpNetworkPeakMbpsIn"] >= ad["ChirpNetworkMeanMbpsIn"] > 0
    epoch = wait_until(
        "the epoch's ad", WAIT_SECONDS, lambda: next(iter(pool.ads("condor_history", "-epochs", f"{cluster}.0")), None)
    )
    assert epoch["ChirpNetworkCampusBytesIn"] >= SIZE

    flights = json.loads(pool.file(cluster, "vpn-flight-recorder.json"))
    (campus,) = [each for each in flights["destinations"] if each["port"] == 7000 and each["bytes_in"] > SIZE]
    assert (campus["name"], campus["class_name"]) == (far_side, "campus")
    (refused,) = flights["refused"]
    assert (refused["address"], refused["reason"]) == (str(FORBIDDEN.v4), "the policy of this slot forbids it")

    def kept():
        rows = [row for path in ledgers.glob("jobs-*.db") for row in ledger.read(path)]
        return next((row for row in rows if row["job"] == ad["GlobalJobId"] and row["ended"]), None)

    row = wait_until("the job in the ledger", WAIT_SECONDS, kept)
    assert (row["outcome"], row["bytes_in"]) == ("ended", ad["ChirpNetworkBytesIn"])
    assert row["slot"] == busy["Name"].partition("@")[0]
