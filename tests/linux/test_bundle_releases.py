"""The bundle in root file systems of other releases than its maker's: by `make releases` only, it takes minutes."""

import os
import re
from contextlib import ExitStack

import pytest
from bundle_site import FETCH, helpers_on_path, must_have_fetched, told_of
from engine_site import sets, use

from htcondor_vpn.bundle.build import build
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.release_roots import RELEASES, enter_argv, made


@pytest.fixture(scope="module", params=RELEASES)
def release(request):
    root = made(request.param)
    if not os.environ.get("HTCONDOR_VPN_TEST_RELEASES"):
        pytest.skip("it is tried by `make releases` only")
    if root is None:
        pytest.skip(f"there is no root file system of {request.param}: run `make releases` as root")
    return request.param, root


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """One with all that there is, and one for a node that has a Python."""
    folder = tmp_path_factory.mktemp("bundles")
    with helpers_on_path():
        full = build(folder / "full", ["nft", "iptables", "wireguard-go", "openconnect"], with_python=True)
        build(folder / "helpers", ["nft", "iptables"], with_python=False)
        again = build(folder / "again", ["nft", "iptables", "wireguard-go", "openconnect"], with_python=True)
    assert full.size_bytes < 25e6
    assert full == again
    return folder


@pytest.fixture(scope="module")
def gateway(site, services, tmp_path_factory):
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def run(site, release, bundles, tmp_path_factory):
    """Runs a bundle in the root file system on the node, as its ordinary user, with this test's files in sight."""

    def run(name, *words):
        argv = [str(bundles / name), *map(str, words)]
        return site.node.run(enter_argv(release[1], argv, [tmp_path_factory.getbasetemp()]), timeout_seconds=60)

    return run


def test_a_tunnel_and_a_file(run, gateway):
    must_have_fetched(run("full", "run", *told_of(gateway), "--", "bash", "-c", FETCH))


def test_a_node_with_a_python_of_its_own(run, release, gateway):
    done = run("helpers", "run", *told_of(gateway), "--", "bash", "-c", FETCH)
    if RELEASES[release[0]]:
        must_have_fetched(done)
    else:
        assert done.returncode == 72
        assert "--with-python" in done.stderr


@pytest.mark.parametrize("engine", ["wireguard", "openconnect"])
def test_the_helpers_do_their_work(site, services, run, tmp_path, engine):
    with ExitStack() as exits:
        knobs = dict(use(engine, site, tmp_path, exits).knobs)
        knobs.pop("WIREGUARD_GO", None)
        must_have_fetched(run("full", "run", *sets(knobs), "--", "bash", "-c", FETCH))


def test_connects_are_held_with_the_bundles_own_xtables(run, gateway):
    done = run("full", "run", "-v", *told_of(gateway), "--set", "HTCONDOR_VPN_HOLD_CONNECTS=on", "--", "true")
    assert done.returncode == 0, done.stderr


def test_the_doctor_finds_that_it_works(run, gateway):
    done = run("full", "doctor", "--gateway", gateway.endpoints[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(?m)^ +yes +wireguard$", done.stdout), done.stdout
