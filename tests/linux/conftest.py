"""What several tests need: a node that would leak if it could, a pilot on it that is told what to do, and a bundle."""

from pathlib import Path

import pytest
from bundle_site import helpers_on_path
from shell_pilot import ShellPilot

from htcondor_vpn.bundle.build import build
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.capture import Capture
from htcondor_vpn.testbed.gateway import PORT, SiteGateway


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle without a Python, made once for all tests; they leave it as it is."""
    path = tmp_path_factory.mktemp("bundle") / "htcondor-vpn.bundle"
    with helpers_on_path():
        build(path, ["nft", "iptables"], with_python=False)
    return path


@pytest.fixture(scope="module")
def gateway(site, tmp_path_factory):
    """A gateway in the DMZ, with a token for pilots."""
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def leaky_site(site):
    """The site, with a node that could leak by its routing table."""
    for action in ("add", "delete"):
        for gateway in plan.DMZ_INSIDE:
            route = ["ip", f"-{gateway.version}", "route", action, "default", "via", str(gateway)]
            site.node.run(route, as_root=True, check=action == "add")  # with its address a route may have gone
        if action == "add":
            yield site


@pytest.fixture
def sealed(leaky_site, tmp_path):
    """That site; what leaves the node during the test, but to the gateway, fails it, and so does what stays behind."""
    before = set(leaky_site.processes())
    with Capture(leaky_site, [(address, PORT) for address in plan.DMZ_INSIDE], tmp_path / "pcap") as capture:
        yield leaky_site
    assert [str(packet) for packet in capture.foreign] == []
    assert capture.total > 0
    left = set(leaky_site.processes()) - before
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]


@pytest.fixture
def start_pilot():
    """Starts pilots, as `ShellPilot`, that end with the test."""
    pilots = []

    def start(*args, **more):
        pilots.append(ShellPilot(*args, **more))
        return pilots[-1]

    yield start
    for pilot in pilots:
        pilot.kill()
