"""A pilot on the simulated site whose jobs HTCondor all runs in a container."""

from contextlib import contextmanager

from tunnelled_pilot import tunnelled_pilot

from htcondor_vpn.testbed.gateway import SiteGateway


@contextmanager
def container_pilot(site, pool, folders, name, program, image):
    """Yields the pilot's configuration once it takes jobs; `program` is Apptainer, or takes its command line."""
    with SiteGateway(site.dmz, folders.mktemp("gateway")) as gateway:
        lines = (
            f"SINGULARITY = {program}", "SINGULARITY_JOB = true", f'SINGULARITY_IMAGE_EXPR = "{image}"',
            "SINGULARITY_USE_LAUNCHER = false",
        )  # fmt: skip
        with tunnelled_pilot(site, pool, gateway, folders.mktemp("container-pilot"), name, *lines) as config:
            yield config
