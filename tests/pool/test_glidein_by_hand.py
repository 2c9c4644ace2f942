"""Glideins and pilots by hand, under a batch system, on the node that reaches nothing, in a real pool.

Whatever happens to them, nothing of theirs is left: no process, and with them no namespace, and no file but the
unpacked bundle, which serves the next one.
"""

from __future__ import annotations

import os
import random
import secrets
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from batch_side import Pbs, Slurm
from glidein_side import STARTUP, Stage, served

from htcondor_vpn.glidein.batch_script import Batch, BatchJob, script
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.gateway import vpn_command
from htcondor_vpn.testbed.pool import EXECUTING, WAIT_SECONDS
from htcondor_vpn.testbed.services import url

#: From SIGTERM on, for HTCondor to evict a job and leave the pool, and for us to clear up.
END_SECONDS = 40
BYTES = 3_000_000
FETCHES = f"#!/bin/sh\ncurl -sS -o /dev/null {url(f'/bytes/{BYTES}')} || exit 1\nexit 7\n"
#: Such a job has to be killed, with its child.
STUCK = "#!/bin/sh\ntrap '' TERM QUIT INT HUP\nsetsid sleep 1000 &\nwhile true; do sleep 1000; done\n"


@pytest.fixture(scope="module")
def suite():
    return "trixie"


@pytest.fixture
def name():
    """The pilot's: another one for each test, as ads of one that was killed stay for a while."""
    return f"by-hand-{secrets.token_hex(3)}"


@pytest.fixture
def home(tmp_path):
    """The user's home folder, which login node and node see, and where the script is submitted."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def environment(home):
    return {"HOME": str(home), "PATH": os.environ["PATH"], "HTVPN_PYTHON": sys.executable}


@pytest.fixture
def slurm(site, tmp_path):
    with Slurm(site.node, tmp_path / "slurm", kill_wait_seconds=3) as slurm:
        yield slurm


@pytest.fixture
def pbs(site, tmp_path):
    with Pbs(site.node, tmp_path / "pbs", kill_wait_seconds=3) as pbs:
        yield pbs


@pytest.fixture
def pilot(pool, name, tmp_path):
    """How the glidein's HTCondor is configured; its token is to come with the script."""
    pilot = pool.pilot(tmp_path / "pilot", name=name)
    (pilot.folder / "tokens.d/pilot").unlink()
    return pilot


@pytest.fixture
def glidein_script(site, services, pool, gateway, bundle, home, pilot, tmp_path):
    """Has the batch script written for what manual_glidein_startup wrote, and returns its path."""
    secret(home / "credential_frontend.idtoken", pool.pilot_token())
    secret(home / "pilot.token", gateway.token_file.read_text())
    (home / "htcondor-vpn.conf").write_text(
        f"HTCONDOR_VPN_GATEWAYS = {gateway.endpoints[0]}\nHTCONDOR_VPN_GATEWAY_PIN_FILE = {gateway.pin_file}\n"
    )
    (home / "glidein_startup.sh").write_bytes(STARTUP.read_bytes())
    stage = Stage(tmp_path)
    stage.add_condor(pool.instance.prefix / "usr", (pilot.folder / "condor_config").read_text())
    stage.add_module()
    with served(site.world, stage.folder, str(plan.WORLD["http"].v4)) as address:
        arguments = shlex.join(stage.arguments(address)).replace("-dir .", "-dir TMPDIR")
        (home / "command").write_text(f"#!/bin/sh\n./glidein_startup.sh {arguments}\n")

        def write(batch, *options):
            path = home / "glidein.sh"
            argv = vpn_command(
                "glidein", "manual", str(home / "command"), "--batch", batch, "-o", str(path), "--time", "1",
                "--bundle", str(bundle), "--config", str(home / "htcondor-vpn.conf"),
                "--token-file", str(home / "pilot.token"), "--credential", str(home / "credential_frontend.idtoken"),
                *options,
            )  # fmt: skip
            site.node.run(argv, check=True)
            return path

        yield write


@pytest.fixture
def pilot_script(services, pool, gateway, name, home):
    """Writes the batch script of a bare HTCondor pilot, and returns its path."""
    secret(home / "pool.token", pool.pilot_token())

    def write(batch):
        argv = vpn_command(
            "glidein", "condor", "--condor", str(pool.instance.prefix), "--pool", pool.collector,
            "--idtoken", str(home / "pool.token"), "--name", name, "--cpus", "2", "--memory-mb", "512",
            "--lead", str(END_SECONDS), "--gateway", gateway.endpoints[0], "--pin-file", str(gateway.pin_file),
            "--token-file", str(gateway.token_file),
        )  # fmt: skip
        path = home / "pilot.sh"
        path.write_text(script(Batch(batch), BatchJob("pilot", argv, 3600, END_SECONDS, 2)))
        return path

    return write


@pytest.fixture
def nothing_is_left(site, services, pool, gateway, glidein_script):
    """A check that nothing of a batch job is left, be it within seconds."""
    before = set(site.processes_of_node())

    def check(job, deadline_seconds=0.0, *, killed=False):
        try:
            wait_until("the end", deadline_seconds, lambda: set(site.processes_of_node()) <= before or None)
        except TimeoutError:
            pytest.fail("\n".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in site.processes_of_node()))
        left = {path.name for path in job.tmp.glob("*")} - {path.name for path in job.tmp.glob("htvpn-cache-*")}
        assert killed or left == set()

    return check


def secret(path, text):
    path.touch(mode=0o600)
    path.write_text(text.strip() + "\n")


def wait_for_slot(pool, name, job):
    wanted = f'regexp("^slot1@{name}@", Name) && VpnState == "up"'
    try:
        return wait_until("the slot", WAIT_SECONDS, lambda: next(iter(pool.slots(wanted)), None))
    except TimeoutError:
        pytest.fail(job.output.read_text())


def on(name):
    """What a job asks for that is to run on that pilot."""
    return {"executable": "job.sh", "requirements": f'regexp("@{name}@", TARGET.Name)'}


def run_a_job(pool, name):
    ad = pool.wait_for_history(pool.submit(on(name), {"job.sh": FETCHES}))
    assert ad["ExitCode"] == 7
    assert ad["ChirpNetworkBytesIn"] > BYTES


def begin_a_job(pool, name, lines="#!/bin/sh\nexec sleep 1000\n"):
    cluster = pool.submit(on(name), {"job.sh": lines})
    pool.wait_for_event(cluster, EXECUTING)
    return cluster


def must_have_left(pool, name):
    """Its ads are withdrawn; else they would stay for a quarter of an hour."""
    wait_until("the ads have gone", 60, lambda: pool.slots(f'regexp("@{name}@", Name)') == [] or None)


def must_end_in_order(pool, name, job, cluster, nothing_is_left, begin):
    assert job.wait(2 * END_SECONDS) == 0, job.output.read_text()
    assert time.monotonic() - begin < END_SECONDS
    nothing_is_left(job)
    must_have_left(pool, name)
    wait_until("the job is in the queue again", WAIT_SECONDS, lambda: pool.queue(cluster)["JobStatus"] == 1 or None)
    pool.remove(cluster)


def test_a_glidein_under_slurm(slurm, pool, name, glidein_script, environment, nothing_is_left):
    job = slurm.sbatch(glidein_script("slurm"), environment)
    wait_for_slot(pool, name, job)
    run_a_job(pool, name)
    cluster = begin_a_job(pool, name)
    begin = time.monotonic()
    job.leave(300)  # what it is to be warned of
    must_end_in_order(pool, name, job, cluster, nothing_is_left, begin)


def test_a_pilot_under_slurm(slurm, pool, name, pilot_script, environment, nothing_is_left):
    job = slurm.sbatch(pilot_script("slurm"), environment)
    wait_for_slot(pool, name, job)
    run_a_job(pool, name)
    cluster = begin_a_job(pool, name)
    begin = time.monotonic()
    job.leave(END_SECONDS)
    must_end_in_order(pool, name, job, cluster, nothing_is_left, begin)


@pytest.mark.parametrize("kind", ["glidein", "pilot"])
def test_a_stuck_job_and_all_the_rest_are_killed(
    slurm, pool, name, glidein_script, pilot_script, environment, nothing_is_left, kind
):
    """Nobody is left to clear up: files of the user's stay, for nobody else to read."""
    path = glidein_script("slurm") if kind == "glidein" else pilot_script("slurm")
    job = slurm.sbatch(path, environment)
    wait_for_slot(pool, name, job)
    cluster = begin_a_job(pool, name, STUCK)
    job.cancel()
    job.wait(60)
    nothing_is_left(job, 60, killed=True)
    assert {path.stat().st_mode & 0o077 for path in job.tmp.iterdir()} <= {0}
    pool.remove(cluster)


def test_the_batch_shell_alone_is_killed(slurm, pool, name, glidein_script, environment, nothing_is_left):
    """As by the kernel, where memory runs out: Slurm then ends the job, and kills what it finds."""
    job = slurm.sbatch(glidein_script("slurm"), environment)
    wait_for_slot(pool, name, job)
    cluster = begin_a_job(pool, name, STUCK)
    job.signal(signal.SIGKILL)
    assert job.wait(60) == -signal.SIGKILL
    nothing_is_left(job, 60, killed=True)
    pool.remove(cluster)


@pytest.mark.parametrize("_", range(10))
def test_told_to_end_at_any_moment(slurm, glidein_script, environment, nothing_is_left, _):
    seconds = random.uniform(0, 8)
    print(f"told to end after {seconds:.3f} s")
    job = slurm.sbatch(glidein_script("slurm", "--lead", str(END_SECONDS)), environment)
    job.leave(END_SECONDS + seconds)
    job.wait(seconds + 2 * END_SECONDS)
    nothing_is_left(job)


@pytest.mark.parametrize("kind", ["glidein", "pilot"])
def test_under_pbs(pbs, pool, name, glidein_script, pilot_script, environment, nothing_is_left, kind):
    """qdel ends PBS' own shell, and with it the script: what is left has been killed, or its parents have."""
    if kind == "glidein":
        job = pbs.qsub(glidein_script("pbs"), environment, {"HTVPN_PYTHON": sys.executable})
    else:
        job = pbs.qsub(pilot_script("pbs"), environment)
    wait_for_slot(pool, name, job)
    run_a_job(pool, name)
    cluster = begin_a_job(pool, name, STUCK)
    job.cancel()
    job.wait(60)
    nothing_is_left(job, 60)
    pool.remove(cluster)


def test_under_pbs_the_scripts_own_timer_warns(pbs, pool, name, glidein_script, environment, nothing_is_left):
    path = glidein_script("pbs", "--time", "0.02", "--lead", "42")  # 30 s from its start on
    job = pbs.qsub(path, environment, {"HTVPN_PYTHON": sys.executable})
    assert job.wait(30 + END_SECONDS) == 0, job.output.read_text()
    nothing_is_left(job)
    must_have_left(pool, name)
