"""HTCondor 25's bug that keeps us from using the JOB_EXIT hook: with file transfer, the job runs again and again.

The starter ends when the hook ends, while the transfer of the output, which no longer blocks, is still under way; so
the access point never hears of the job's end. When this test fails on sid, upstream has mended it.
"""

import pytest

from htcondor_vpn.testbed.condor_folder import Master, wait_until
from htcondor_vpn.testbed.pool import EXECUTING, WAIT_SECONDS

pytestmark = pytest.mark.pool


@pytest.fixture
def pilot_with_hook(site, pool, tmp_path):
    hook = tmp_path / "job-exit"
    hook.write_text("#!/bin/sh\ncat > /dev/null\n")
    hook.chmod(0o755)
    config = pool.pilot(tmp_path / "pilot", name="hooked")
    config.add("STARTER_JOB_HOOK_KEYWORD = BUG", f"BUG_HOOK_JOB_EXIT = {hook}")
    with Master(site.dmz, config):
        pool.wait_for_startd("hooked")
        yield config


def test_a_job_exit_hook_makes_a_job_run_for_ever_on_25_only(pool, pilot_with_hook, suite):
    cluster = pool.submit({"executable": "job.sh"}, {"job.sh": "#!/bin/sh\necho output > made.txt\n"})

    def outcome():
        if sum(event.number == EXECUTING for event in pool.events(cluster)) > 1:
            return "runs again"
        return "ends" if pool.ads("condor_history", str(cluster)) else None

    try:
        assert wait_until("a job's end or second start", WAIT_SECONDS, outcome) == {
            "trixie": "ends", "sid": "runs again"
        }[suite]  # fmt: skip
    finally:
        pool.forget_jobs()
