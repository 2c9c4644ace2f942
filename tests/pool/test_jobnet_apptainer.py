"""Jobs that HTCondor runs in a container by the real Apptainer, as an ordinary user, are in their own network.

The image is a folder with a few of the machine's programs and their libraries.
"""

import re
import shutil
from pathlib import Path

import pytest
from container_pilot import container_pilot
from resends import payload
from tunnelled_pilot import resends_to_jobs

from htcondor_vpn.linux.programs import run_program
from htcondor_vpn.testbed import apptainer_prefix
from htcondor_vpn.testbed.headers import payload_bytes
from htcondor_vpn.testbed.services import url

NAME = "apptainer"
SIZE = 3_000_000
JOB = f"""\
#!/bin/sh
cat /etc/in-image
echo $APPTAINER_NAME
readlink /proc/self/ns/net
grep -c 'CapEff:.0000000000000000' /proc/self/status
curl -s -m 20 -o /dev/null -w '%{{size_download}}\\n' {url(f"/bytes/{SIZE}")}
"""


def make_image(image):
    for folder in ("bin", "etc", "dev", "proc", "sys", "tmp", "var/tmp", "srv", "root", "home"):
        (image / folder).mkdir(parents=True)
    for name in ("sh", "cat", "readlink", "grep", "curl"):
        program = shutil.which(name)
        shutil.copy(program, image / "bin" / name)
        for library in re.findall(r"(/\S+) \(0x", run_program(["ldd", program])):
            there = image / library.lstrip("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, there)
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (image / "etc" / name).touch()
    (image / "etc/in-image").write_text("in the image\n")


@pytest.fixture(scope="module")
def pilot(site, services, pool, tmp_path_factory):
    """A pilot whose jobs all run in a container of Apptainer's."""
    program = apptainer_prefix.made()
    if program is None:
        pytest.skip("there is no Apptainer in the cache: `make test` fetches it")
    image = tmp_path_factory.mktemp("apptainer") / "image"
    make_image(image)
    with container_pilot(site, pool, tmp_path_factory, NAME, program, image) as config:
        yield config


def test_job_in_apptainers_container_has_its_own_network_and_is_counted(pool, pilot):
    job = {"executable": "job.sh", "requirements": pilot.requirements, "+VpnBandwidthMbps": "100"}
    with resends_to_jobs(pilot) as resends:
        cluster = pool.submit(job, {"job.sh": JOB})
        ad = pool.wait_for_history(cluster)
        resent = resends.segments()
    said = pool.file(cluster, "out.0").decode().splitlines()
    assert said[:1] == ["in the image"], pool.file(cluster, "err.0")
    assert said[1] == "image"  # Apptainer's own word for it
    assert said[2] != Path("/proc/self/ns/net").readlink().name
    assert said[3:] == ["1", str(SIZE)]
    assert payload_bytes(ad, "In") == payload(SIZE, resent, 0.02)
