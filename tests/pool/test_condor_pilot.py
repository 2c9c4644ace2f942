"""A pilot by hand, without GlideinWMS: under a batch system's script, on the node that reaches nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from htcondor_vpn.glidein.batch_script import Batch, BatchJob, script
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.gateway import SiteGateway, vpn_command
from htcondor_vpn.testbed.pool import EXECUTING, WAIT_SECONDS
from htcondor_vpn.testbed.services import url

LEAD_SECONDS = 65  # a minute of which is for evicting jobs


@pytest.fixture(scope="module")
def suite():
    return "trixie"


@pytest.fixture(scope="module")
def gateway(site, tmp_path_factory):
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


class BatchSystem:
    """Runs a script as Slurm does: in a folder for temporary files, signals to the script, and to all at the end."""

    def __init__(self, host, folder: Path, text: str) -> None:
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        self.log = folder / "slurm.out"
        path = folder / "job.sh"
        path.write_text(text)
        path.chmod(0o755)
        env = {"TMPDIR": str(self.tmp), "SLURM_JOB_ID": "17"}
        self.process = host.start(["bash", str(path)], env=env, log=self.log)

    def warn(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)


def pilot_argv(pool, gateway, folder, name, condor, *more):
    token = folder / "pool.token"
    token.touch(mode=0o600)
    token.write_text(pool.pilot_token() + "\n")
    return vpn_command(
        "glidein", "condor", "--condor", str(condor), "--pool", pool.collector, "--idtoken", str(token),
        "--name", name, "--cpus", "2", "--memory-mb", "512", *more, "--gateway", gateway.endpoints[0],
        "--pin-file", str(gateway.pin_file), "--token-file", str(gateway.token_file),
    )  # fmt: skip


def wait_for_slot(pool, name):
    wanted = f'Name == "slot1@{name}@pilots" && VpnState == "up"'
    return wait_until(f"the slot of {name}", WAIT_SECONDS, lambda: next(iter(pool.slots(wanted)), None))


def test_a_job_runs_and_the_batch_systems_warning_ends_the_pilot_in_order(site, services, pool, gateway, tmp_path):
    argv = pilot_argv(pool, gateway, tmp_path, "by-hand", pool.instance.prefix, "--lead", str(LEAD_SECONDS), "-v")
    job = BatchJob("pilot", argv, time_seconds=600, lead_seconds=LEAD_SECONDS, cpus=2)
    batch = BatchSystem(site.node, tmp_path, script(Batch.SLURM, job))
    wait_for_slot(pool, "by-hand")
    here = {"requirements": 'regexp("@by-hand@", TARGET.Name)'}
    lines = f"#!/bin/sh\ncurl -sS -o /dev/null {url('/bytes/3000000')} || exit 1\nexit 7\n"
    cluster = pool.submit({"executable": "job.sh", **here}, {"job.sh": lines})
    ad = pool.wait_for_history(cluster)
    assert ad["ExitCode"] == 7
    assert ad["ChirpNetworkBytesIn"] > 3_000_000

    cluster = pool.submit({"executable": "job.sh", **here}, {"job.sh": "#!/bin/sh\nexec sleep 1000\n"})
    pool.wait_for_event(cluster, EXECUTING)
    batch.warn()
    assert batch.process.wait(LEAD_SECONDS) == 0, batch.log.read_text()
    assert list(batch.tmp.iterdir()) == []
    wait_until("the job is in the queue again", WAIT_SECONDS, lambda: pool.queue(cluster)["JobStatus"] == 1 or None)
    pool.remove(cluster)


def test_a_job_may_go_on_for_most_of_the_lead(site, pool, gateway, tmp_path):
    argv = pilot_argv(pool, gateway, tmp_path, "lets-end", pool.instance.prefix, "--lead", "300")
    batch = BatchSystem(site.node, tmp_path, script(Batch.SLURM, BatchJob("pilot", argv, 600, 300, cpus=2)))
    wait_for_slot(pool, "lets-end")
    here = {"requirements": 'regexp("@lets-end@", TARGET.Name)'}
    cluster = pool.submit({"executable": "job.sh", **here}, {"job.sh": "#!/bin/sh\nsleep 10\nexit 7\n"})
    pool.wait_for_event(cluster, EXECUTING)
    batch.warn()
    ad = pool.wait_for_history(cluster, 240)
    assert (ad["ExitCode"], ad["NumJobStarts"]) == (7, 1)
    assert batch.process.wait(300) == 0, batch.log.read_text()


def test_killed_at_the_end_nothing_runs_on(site, pool, gateway, tmp_path):
    before = set(site.processes())
    argv = pilot_argv(pool, gateway, tmp_path, "killed", pool.instance.prefix)
    batch = BatchSystem(site.node, tmp_path, script(Batch.SLURM, BatchJob("pilot", argv, 600, 60)))
    wait_for_slot(pool, "killed")
    for pid in (batch.process.pid, *children(batch.process.pid)):
        os.kill(pid, signal.SIGKILL)
    batch.process.wait()
    wait_until("the pilot's processes have gone", 60, lambda: not set(site.processes()) - before or None)


def test_a_pilot_that_knows_its_lifetime_ends_by_itself(site, pool, gateway, tmp_path):
    more = "--lead", "60", "--lifetime", "140"  # it begins to end after 80 s
    argv = pilot_argv(pool, gateway, tmp_path, "short", pool.instance.prefix, *more)
    batch = BatchSystem(site.node, tmp_path, script(Batch.SLURM, BatchJob("pilot", argv, 600, 60)))
    wait_for_slot(pool, "short")
    assert batch.process.wait(140) == 0, batch.log.read_text()
    assert list(batch.tmp.iterdir()) == []


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(word) for word in found]
