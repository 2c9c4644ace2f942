"""A policy file under real starters: what a rule says of owner, request and slot is what the job gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tunnelled_pilot import log_of, tunnelled_pilot

from htcondor_vpn.cli.main import main
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.rates import assert_rate

HELPERS = Path(__file__).parents[1] / "linux"
CLIENT = (HELPERS / "traffic_client.py").read_text()
NAME = "policed"
HELD_BY_HOOK = 19

RULES = """
[rule held]
when = TARGET.Ask =?= "first"
hold = ask us first

[rule walled]
when = TARGET.Walled =?= true
deny = {far_side} tcp port 7000

[rule two-cpus]
when = TARGET.Owner == "{owner}" && TARGET.RequestCpus == 2 && regexp("^slot1_", MY.Name)
up_mbps = 15 * MY.Cpus
down_mbps = 20 * TARGET.RequestCpus

[rule the-rest]
up_mbps = 5
down_mbps = 5
"""


@pytest.fixture(scope="module")
def policy(pool, far_side, tmp_path_factory):
    """The policy file, with the owner that this pool's jobs have."""
    cluster = pool.submit({"executable": "/bin/true", "hold": "true"})
    owner = pool.queue(cluster)["Owner"]
    pool.remove(cluster)
    path = tmp_path_factory.mktemp("policy") / "site.policy"
    path.write_text(RULES.format(owner=owner, far_side=far_side))
    return path


@pytest.fixture(scope="module")
def log(site, pool, gateway, policy, tmp_path_factory):
    """The log of a pilot with the policy whose tunnel is up."""
    knob = f"HTCONDOR_VPN_JOB_POLICY_FILE = {policy}"
    with tunnelled_pilot(site, pool, gateway, tmp_path_factory.mktemp("pilot"), NAME, knob) as config:
        yield log_of(config)


def submit(pool, script, files=None, **more):
    files = {"job.sh": f"#!/bin/sh\n{script}\n", "traffic_client.py": CLIENT, **(files or {})}
    inputs = ", ".join(name for name in files if name != "job.sh")
    return pool.submit({"executable": "job.sh", "transfer_input_files": inputs, **more}, files)


def test_a_rule_by_owner_request_and_slot_decides(pool, log, far_side):
    def measure():
        script = f"{sys.executable} traffic_client.py get 10000000 {far_side}"
        cluster = submit(pool, script, request_cpus="2")
        assert pool.wait_for_history(cluster)["ExitCode"] == 0, pool.file(cluster, "err.0")
        return 1e7 * 8 / float(pool.file(cluster, "out.0").split()[0]) / 1e6

    assert_rate(measure, 40)
    assert b"by two-cpus, up 30, down 40 Mbit/s" in log.read_bytes()


def test_a_denied_destination_refuses(pool, log, far_side):
    connect = f"{sys.executable} -c 'import socket; socket.create_connection((\"{far_side}\", 7000), 60)'"
    clusters = {walled: submit(pool, connect, **{"+Walled": walled}) for walled in ("true", "false")}
    assert pool.wait_for_history(clusters["false"])["ExitCode"] == 0
    assert pool.wait_for_history(clusters["true"])["ExitCode"] == 1
    assert b"No route to host" in pool.file(clusters["true"], "err.0")


def test_bad_requests_are_held_with_their_sub_codes(pool, log):
    wanted = {
        ("+VpnUpMbps", "6"): (4, "this job may have at most 5 Mbit/s"),
        ("+VpnNetwork", '"host"'): (8, 'this job may have "tunnel"'),
        ("+VpnFlightRecorder", '"yes"'): (7, "must be true or false"),
        ("+Ask", '"first"'): (11, "ask us first (rule held)"),
    }
    clusters = {request: submit(pool, "true", **dict([request])) for request in wanted}
    for request, (sub_code, says) in wanted.items():
        ad = pool.wait_for_hold(clusters[request])
        assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (HELD_BY_HOOK, sub_code)
        assert says in ad["HoldReason"]
        pool.remove(clusters[request])


def test_a_job_ad_among_the_jobs_files_decides_nothing(pool, log):
    before = len(log.read_bytes())
    forged = 'Owner = "{owner}"\nRequestCpus = 2\nVpnUpMbps = 30\n'
    cluster = submit(pool, 'grep -c VpnUpMbps "$_CONDOR_JOB_AD"', {".job.ad": forged})
    assert pool.wait_for_history(cluster)["ExitCode"] == 0, "the job's file has not taken the place of the starter's"
    wait_for_log(log, b"by the-rest, up 5, down 5 Mbit/s", start_bytes=before)
    assert b"by two-cpus" not in log.read_bytes()[before:]


def test_explain_says_what_the_pilot_did(pool, log, policy, capsys):
    cluster = pool.submit({"executable": "/bin/true", "hold": "true", "request_cpus": "2"})
    folder = policy.parent
    (folder / "job.ad").write_text(pool.tool("condor_q", "-long", str(cluster)))
    (folder / "slot.json").write_text(pool.tool("condor_status", "-json", "-limit", "1", "-constraint", "Cpus > 1"))
    pool.remove(cluster)
    argv = ["job", "policy", "explain", "--policy", str(policy), str(folder / "job.ad"), str(folder / "slot.json")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "   undefined  rule held" in out or "   false      rule held" in out
    assert "rule two-cpus" in out
