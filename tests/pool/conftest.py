"""Real pools on the simulated site, with each version of HTCondor that the project is tested with."""

import sys
from pathlib import Path

import pytest

from htcondor_vpn.bundle.build import build
from htcondor_vpn.testbed import condor_prefix, plan
from htcondor_vpn.testbed.condor_folder import Master
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.pool import CentralManager

HELPERS = Path(__file__).parents[1] / "linux"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The bundle that a glidein is started with, for a node that has a Python."""
    path = tmp_path_factory.mktemp("bundle") / "htcondor-vpn.bundle"
    build(path, ["nft", "iptables"], with_python=False)
    return path


@pytest.fixture(scope="module", params=condor_prefix.SUITES)
def suite(request):
    """The Debian suite whose HTCondor is used: 23.9 of trixie and 25.x of sid. Parametrize it to have one of them."""
    return request.param


@pytest.fixture(scope="module")
def pool(site, suite, tmp_path_factory):
    """A central manager and access point in the world, without any pilot yet."""
    address = str(plan.WORLD["cm"].v4)
    folder = tmp_path_factory.mktemp(f"pool-{suite}")
    with CentralManager(site.world, condor_prefix.prefix(suite), folder, address) as pool:
        yield pool


@pytest.fixture(scope="module")
def plain_pilot(site, pool, tmp_path_factory):
    """A pilot in the DMZ, which reaches the pool without any tunnel."""
    config = pool.pilot(tmp_path_factory.mktemp("plain"), name="plain")
    with Master(site.dmz, config):
        pool.wait_for_startd("plain")
        yield config


@pytest.fixture(scope="module")
def gateway(site, tmp_path_factory):
    """A gateway of ours in the DMZ."""
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def far_side(site):
    """A TCP server in the world that gives and takes any number of bytes."""
    address = plan.WORLD["iperf"]
    peer = site.world.start(
        [sys.executable, str(HELPERS / "traffic_peer.py"), str(address.v4), str(address.v6), "7000"]
    )
    yield str(address.v4)
    peer.kill()
    peer.wait()
