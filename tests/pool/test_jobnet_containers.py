"""Jobs that HTCondor runs in a container by its Singularity hook are in their own network too.

In Apptainer's place stands a program that takes its command line and makes the namespaces that Apptainer makes without
set-uid (user, mount, PID), with the node's files as the image: the chain from starter to job is the real one.
"""

import sys
from pathlib import Path

import pytest
from container_pilot import container_pilot
from resends import payload
from tunnelled_pilot import resends_to_jobs

from htcondor_vpn.testbed.headers import payload_bytes
from htcondor_vpn.testbed.services import url

NAME = "containers"
STAND_IN = """\
#!{python}
import os, sys
if "--version" in sys.argv or sys.argv[1:2] == ["version"]:
    print("apptainer version 1.3.4")
    sys.exit()
if sys.argv[-1] == "/exit_37":
    sys.exit(37)  # how a startd finds out whether containers work
if "test" in sys.argv:
    open({marker!r}, "w").close()
    sys.exit()
image = sys.argv.index({image!r})
command = sys.argv[image + 1 :]
scratch = os.environ["_CONDOR_SCRATCH_DIR"]
os.chdir(scratch if os.path.isdir(scratch) else ".")
if not os.path.exists(command[0]):  # a path of the container's
    command[0] = os.path.join(".", os.path.basename(command[0]))
os.environ["IN_CONTAINER"] = "yes"
apart = ["unshare", "--user", "--map-current-user", "--mount", "--pid", "--fork", "--mount-proc"]
os.execvp("unshare", [*apart, *command])
"""


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """The file that the stand-in makes when it is to run an image's test."""
    return tmp_path_factory.mktemp("image-test") / "tested"


@pytest.fixture(scope="module")
def pilot(site, services, pool, tested, tmp_path_factory):
    """A pilot whose jobs all run in a container."""
    folder = tmp_path_factory.mktemp("stand-in")
    image = folder / "image"
    (image / "bin").mkdir(parents=True)
    program = folder / "apptainer"
    told = {"image": str(image), "marker": str(tested)}
    program.write_text(STAND_IN.format(python=sys.executable, **told))
    program.chmod(0o755)
    with container_pilot(site, pool, tmp_path_factory, NAME, program, image) as config:
        yield config


def test_job_in_a_container_has_its_own_network_and_is_counted(pool, pilot):
    size = 3_000_000
    script = (
        "#!/bin/sh\necho container $IN_CONTAINER\nreadlink /proc/self/ns/net\n"
        f"curl -s -m 20 -o /dev/null -w '%{{size_download}}\\n' {url(f'/bytes/{size}')}\n"
    )
    job = {"executable": "job.sh", "requirements": pilot.requirements, "+VpnBandwidthMbps": "100"}
    with resends_to_jobs(pilot) as resends:
        cluster = pool.submit(job, {"job.sh": script})
        ad = pool.wait_for_history(cluster)
        resent = resends.segments()
    container, network, got = pool.file(cluster, "out.0").decode().splitlines()
    assert container == "container yes", pool.file(cluster, "err.0")
    assert network != Path("/proc/self/ns/net").readlink().name
    assert int(got) == size
    assert payload_bytes(ad, "In") == payload(size, resent, 0.02)


def test_no_program_of_an_image_is_run_outside_of_the_jobs_network(pilot, tested):
    """By default a starter first runs the image's own test, which its maker writes, without the wrapper."""
    assert not tested.exists()
