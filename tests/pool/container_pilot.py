"""A pilot on the simulated site whose jobs HTCondor all runs in a container."""

from contextlib import contextmanager

from htcondor_vpn.testbed.condor_folder import Master
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.logs import wait_for_log


@contextmanager
def container_pilot(site, pool, folders, name, program, image):
    """Yields the pilot's configuration once it takes jobs; `program` is Apptainer, or takes its command line."""
    with SiteGateway(site.dmz, folders.mktemp("gateway")) as gateway:
        config = pool.pilot(folders.mktemp("container-pilot"), name=name)
        config.use_vpn(
            f"SINGULARITY = {program}", "SINGULARITY_JOB = true", f'SINGULARITY_IMAGE_EXPR = "{image}"',
            "SINGULARITY_USE_LAUNCHER = false",
        )  # fmt: skip
        log = config.folder / "log" / "master.out"
        log.touch()
        with Master(site.node, config, launcher=gateway.run_argv([], "-v")):
            wait_for_log(log, b"the tunnel is up")
            pool.wait_for_startd(name, constraint='VpnState == "up"')
            yield config
