"""What HTCondor would run outside of a job's network, or with the job's environment before the job has one."""

import sys
import textwrap

import pytest
from tunnelled_pilot import tunnelled_pilot

from htcondor_vpn.testbed.condor_folder import Master

NAME = "confined"

#: HTCondor's hold code for a hook's word (HookPrepareJobFailure), and ours.
HELD_BY_HOOK, RUNS_OUTSIDE = 19, 30


@pytest.fixture(scope="module")
def pilot(site, pool, gateway, tmp_path_factory):
    """A pilot with the project's configuration whose tunnel is up."""
    with tunnelled_pilot(site, pool, gateway, tmp_path_factory.mktemp("pilot"), NAME) as config:
        yield config


@pytest.mark.parametrize("name", ["PreCmd", "PostCmd", "ToolDaemonCmd", "TransferPlugins"])
def test_program_beside_the_job_holds_it(pool, pilot, name):
    job = {"executable": "/bin/true", "transfer_executable": "false", "requirements": pilot.requirements}
    cluster = pool.submit({**job, f"+{name}": '"program"'})
    ad = pool.wait_for_hold(cluster)
    assert (ad["HoldReasonCode"], ad["HoldReasonSubCode"]) == (HELD_BY_HOOK, RUNS_OUTSIDE)
    assert name in ad["HoldReason"]
    pool.remove(cluster)


def test_variables_of_the_loader_act_on_the_job_and_not_on_the_wrapper(pool, pilot):
    """With LD_DEBUG_OUTPUT each program that the loader starts leaves a file with its process' number."""
    script = textwrap.dedent(
        f"""\
        #!{sys.executable} -IS
        import os
        with open("/proc/self/environ") as file:
            own = file.read()
        print("job", os.path.exists(f"loader.{{os.getpid()}}"), "LD_DEBUG=statistics" in own, "PLAIN=it's one" in own)
        loaded = [name for name in os.listdir() if name.startswith("loader.")]
        print("others", [name for name in loaded if name != f"loader.{{os.getpid()}}"])
        """
    )
    environment = "\"LD_DEBUG=statistics LD_DEBUG_OUTPUT=loader 'PLAIN=it''s one'\""
    cluster = pool.submit(
        {"executable": "job.py", "environment": environment, "transfer_output_files": '""',
         "requirements": pilot.requirements},
        {"job.py": script},
    )  # fmt: skip
    ad = pool.wait_for_history(cluster)
    assert ad["ExitCode"] == 0, pool.file(cluster, "err.0")
    assert pool.file(cluster, "out.0").decode().splitlines() == ["job True True True", "others []"]


@pytest.fixture(scope="module")
def wrapped_only(site, pool, tmp_path_factory):
    """A pilot with a USER_JOB_WRAPPER of its own and no hook."""
    folder = tmp_path_factory.mktemp("wrapped")
    wrapper = folder / "wrapper"
    wrapper.write_text('#!/bin/sh\nWRAPPED=yes exec "$@"\n')
    wrapper.chmod(0o755)
    config = pool.pilot(folder, name="wrapped")
    config.add(f"USER_JOB_WRAPPER = {wrapper}")
    with Master(site.dmz, config):
        pool.wait_for_startd("wrapped")
        yield config


@pytest.mark.parametrize("name", ["PreCmd", "PostCmd"])
def test_htcondor_runs_such_programs_without_the_wrapper(pool, suite, wrapped_only, name):
    """Why they hold the job."""
    if suite != "trixie":
        pytest.skip("HTCondor 25 was not seen to run them")
    cluster = pool.submit(
        {
            "executable": "job.sh", "transfer_input_files": "beside.sh", f"+{name}": '"/bin/sh"',
            f"+{name.replace('Cmd', 'Arguments')}": '"beside.sh"',
            "transfer_output_files": "beside.txt", "requirements": wrapped_only.requirements,
        },
        {"job.sh": "#!/bin/sh\necho $WRAPPED; touch beside.txt\n",
         "beside.sh": "#!/bin/sh\necho \"beside $WRAPPED\" > beside.txt\n"},
    )  # fmt: skip
    assert pool.wait_for_history(cluster)["ExitCode"] == 0
    assert pool.file(cluster, "out.0") == b"yes\n"
    assert pool.file(cluster, "beside.txt") == b"beside \n"
