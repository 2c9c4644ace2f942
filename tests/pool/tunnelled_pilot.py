"""A pilot on the simulated node, in the tunnel, that takes a pool's jobs."""

import re
from contextlib import contextmanager

from resends import Resends

from htcondor_vpn.testbed.condor_folder import Master
from htcondor_vpn.testbed.logs import wait_for_log


def log_of(config):
    """The log of the pilot with this configuration: of its tunnel, and of its condor_master."""
    return config.folder / "log" / "master.out"


def resends_to_jobs(config):
    """What is sent again in the tunnel of the running pilot with this configuration, from now on."""
    masters = re.findall(rb"\*\* PID = (\d+)", (config.folder / "log" / "MasterLog").read_bytes())
    return Resends(int(masters[-1]))


@contextmanager
def tunnelled_pilot(site, pool, gateway, folder, name, *lines):
    """Yields its configuration, of which `lines` are a part, once its slots are seen with a tunnel that is up."""
    config = pool.pilot(folder, name=name)
    config.use_vpn(*lines)
    log_of(config).touch()
    with Master(site.node, config, launcher=gateway.run_argv([], "-v")) as master:
        wait_for_log(log_of(config), b"the tunnel is up")
        pool.wait_for_startd(name, constraint='VpnState == "up"')
        yield config
        assert master.poll() is None
