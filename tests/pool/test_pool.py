"""The real pool by itself, without our project's parts: what the other tests of this folder build on."""

import pytest

from htcondor_vpn.testbed.condor_folder import Master, wait_until
from htcondor_vpn.testbed.logs import wait_for_log
from htcondor_vpn.testbed.pool import ABORTED, EXECUTING, TERMINATED

pytestmark = pytest.mark.pool

JOB = """#!/bin/sh
cat input.txt
echo "$@" >&2
echo made here > made.txt
exit 7
"""


def test_a_job_runs_through_a_plain_pilot(pool, plain_pilot):
    cluster = pool.submit(
        {"executable": "job.sh", "arguments": "a b", "transfer_input_files": "input.txt", "+Mine": "42"},
        {"job.sh": JOB, "input.txt": "carried there\n"},
    )
    ad = pool.wait_for_history(cluster)
    assert (ad["ExitCode"], ad["ExitBySignal"], ad["Mine"]) == (7, False, 42)
    assert pool.file(cluster, "out.0") == b"carried there\n"
    assert pool.file(cluster, "err.0") == b"a b\n"
    assert pool.file(cluster, "made.txt") == b"made here\n"
    numbers = [event.number for event in pool.events(cluster)]
    assert numbers.index(EXECUTING) < numbers.index(TERMINATED)


def test_the_pool_has_the_version_it_was_asked_for(pool, plain_pilot, suite):
    slot = pool.wait_for_startd("plain")
    assert slot["CondorVersion"].split()[1].startswith({"trixie": "23.9.", "sid": "25."}[suite])
    assert slot["Name"] == plain_pilot.slot_name


def test_several_jobs_run_at_once(pool, plain_pilot):
    cluster = pool.submit({"executable": "/bin/true", "queue": "6"})
    assert [pool.wait_for_history(cluster, process=process)["ExitCode"] for process in range(6)] == [0] * 6


def test_a_running_job_can_be_removed(pool, plain_pilot):
    cluster = pool.submit({"executable": "/bin/sleep", "arguments": "1000"})
    pool.wait_for_event(cluster, EXECUTING)
    pool.remove(cluster)
    assert pool.wait_for_history(cluster)["JobStatus"] == 3
    assert ABORTED in [event.number for event in pool.events(cluster)]


def test_one_can_log_in_to_a_running_job(pool, plain_pilot):
    cluster = pool.submit({"executable": "/bin/sleep", "arguments": "1000"})
    pool.wait_for_event(cluster, EXECUTING)
    assert str(plain_pilot.folder / "execute") in pool.ssh_to_job(cluster, "pwd")
    pool.remove(cluster)


def test_a_job_that_the_access_point_refuses_is_an_error(pool):
    with pytest.raises(Exception, match="nothing-here"):
        pool.submit({"executable": "nothing-here"})


def test_two_pilots_at_one_address_are_two(pool, plain_pilot, site, tmp_path):
    with Master(site.dmz, pool.pilot(tmp_path / "second", name="second", cpus=3)):
        slot = pool.wait_for_startd("second")
        assert slot["Cpus"] == 3
        names = {ad["Name"] for ad in pool.slots("PartitionableSlot", ["Name"])}
        assert names == {"slot1@plain@testbed", "slot1@second@testbed"}


def test_a_pilot_with_a_foreign_token_does_not_get_in(pool, site, tmp_path):
    config = pool.pilot(tmp_path / "foreign", name="foreign")
    head, claims, signature = pool.pilot_token().split(".")
    config.write_secret("tokens.d/pilot", f"{head}.{claims}.{signature[::-1]}\n")
    log = config.folder / "log" / "StartLog"
    log.touch()
    with Master(site.dmz, config):
        wait_for_log(log, b"(?i)failed to authenticate|authentication.*failed|SECMAN.*refused")
        assert pool.slots(f'Name == "{config.slot_name}"') == []


def test_a_pilot_leaves_no_process(pool, site, tmp_path):
    before = set(site.processes())
    config = pool.pilot(tmp_path / "brief", name="brief")
    with Master(site.dmz, config) as master:
        pool.wait_for_startd("brief")
        cluster = pool.submit({"executable": "/bin/sleep", "arguments": "1000", "requirements": config.requirements})
        pool.wait_for_event(cluster, EXECUTING)
        assert master.stop() == 0
    pool.remove(cluster)
    pool.wait_for_history(cluster)
    wait_until("all processes have gone", 60, lambda: set(site.processes()) <= before or None)
