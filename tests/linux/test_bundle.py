"""A bundle on the simulated node: a tunnel by its own helpers, and places where it cannot be unpacked."""

import sys
from pathlib import Path

import pytest
from bundle_site import FETCH, must_have_fetched, told_of

from htcondor_vpn.bundle.build import build
from htcondor_vpn.testbed.gateway import SiteGateway

PYTHON = f"HTVPN_PYTHON={sys.executable}"


@pytest.fixture(scope="module")
def gateway(site, services, tmp_path_factory):
    with SiteGateway(site.dmz, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def places(tmp_path):
    """What TMPDIR and XDG_CACHE_HOME name."""
    for name in ("tmp", "cache"):
        (tmp_path / name).mkdir()
    return tmp_path / "tmp", tmp_path / "cache"


@pytest.fixture
def unpack(site, bundle, places):
    """Has the bundle unpacked on the node, where file systems with `options` are mounted at the places `over`."""

    def unpack(options, *over):
        mounts = "; ".join(f"mount -t tmpfs -o {options} none {place}" for place in over)
        script = f"{mounts}; TMPDIR={places[0]} XDG_CACHE_HOME={places[1]} {PYTHON} exec {bundle} --unpack"
        return site.node.run(["unshare", "--mount", "sh", "-ec", script], as_root=True)

    return unpack


def test_a_tunnel_by_the_bundles_own_programs(site, bundle, gateway, tmp_path):
    environ = ["env", f"TMPDIR={tmp_path}", PYTHON, "PATH=/usr/bin:/bin"]
    argv = [*environ, bundle, "run", "-v", *told_of(gateway), "--", "bash", "-c", FETCH]
    must_have_fetched(site.node.run(list(map(str, argv))))


def test_the_environment_of_the_command_has_no_word_of_the_bundle(site, bundle, gateway, tmp_path):
    clean = ["env", "-i", f"TMPDIR={tmp_path}", PYTHON, "PATH=/usr/bin:/bin"]  # what is in /tmp stays for other tests
    argv = [*clean, bundle, "run", *told_of(gateway), "--", "env"]
    done = site.node.run(list(map(str, argv)))
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    shells = {"PWD", "_", "OLDPWD", "SHLVL", "LC_CTYPE"}
    assert names <= {"TMPDIR", "PATH", "HTVPN_PYTHON", "HTCONDOR_VPN_RUN_DIR"} | shells


POLICY = """
[rule small]
when = stringListMember(TARGET.Owner, "alice,bob")
up_mbps = 5 * MY.Cpus
"""


@pytest.mark.parametrize("helper", ["none", "htcondor"])
def test_a_policy_file_takes_htcondors_modules(site, bundle, places, tmp_path, helper):
    if helper != "none":
        bundle = tmp_path / "bundle"
        build(bundle, [helper], with_python=False)
    (tmp_path / "policy").write_text(POLICY)
    environ = {"TMPDIR": str(places[0]), "HTVPN_PYTHON": sys.executable}
    done = site.node.run([str(bundle), "job", "policy", "check", str(tmp_path / "policy")], env=environ)
    if helper == "none":
        assert done.returncode == 72
        assert "--helpers …,htcondor" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("options", ["noexec", "size=64k", "ro"])
def test_where_the_nodes_own_disk_cannot_be_used_it_is_the_home(unpack, places, options):
    done = unpack(options, places[0], "/tmp")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.parents[1] == places[1]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(("options", "why"), [("size=64k", "tar: "), ("noexec", "Permission denied")])
def test_where_it_can_be_unpacked_nowhere_it_says_why(unpack, places, options, why):
    done = unpack(options, *places, "/tmp")
    assert (done.returncode, done.stdout) == (74, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
