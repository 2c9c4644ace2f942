"""Which control groups are a startd's, as HTCondor lays them out under systemd, in a container and in a batch job."""

from pathlib import PurePosixPath

import pytest

from htcondor_vpn.execution_point.admission import is_where_jobs_are

SERVICE = "/system.slice/condor.service"


@pytest.mark.parametrize(
    ("cgroup", "starters", "expected"),
    [
        (SERVICE, SERVICE, True),
        ("/system.slice/htcondor/condor_execute_slot1_1@ep", SERVICE, True),
        ("/user.slice/user-1000.slice/session-1.scope", SERVICE, False),
        ("/system.slice2/job", SERVICE, False),
        ("/", SERVICE, False),
        ("/", "/", True),
        ("/htcondor/slot1", "/", True),
        ("/htcondor/slot1", "/init.scope", True),
        ("/slurm/job_1/htcondor/slot1", "/slurm/job_1/step_0", True),
        ("/slurm/job_2/htcondor/slot1", "/slurm/job_1/step_0", False),
        ("/../other", SERVICE, False),
    ],
)
def test_what_a_starter_starts_is_in_its_own_group_or_beside_it(cgroup, starters, expected):
    assert is_where_jobs_are(PurePosixPath(cgroup), PurePosixPath(starters)) is expected
