"""Which packages make a prefix, and when one in the cache is taken for one."""

import json

import pytest

from htcondor_vpn.errors import RunFolderError, UsageError
from htcondor_vpn.testbed import condor_prefix


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a stand-in for the building of a prefix that writes down what was asked of it."""
    monkeypatch.setenv("HTCONDOR_VPN_CACHE", str(tmp_path))
    monkeypatch.delenv("HTCONDOR_VPN_TEST_CONDOR", raising=False)
    built = []

    def build(suite, folder):
        built.append(suite)
        folder.mkdir(exist_ok=True)
        note = {"layout": condor_prefix.LAYOUT, "path": str(folder), "suite": suite, "version": "25.1.2"}
        (folder / "prefix.json").write_text(json.dumps(note))

    monkeypatch.setattr(condor_prefix, "_build", build)
    return built


def test_a_prefix_is_built_once(cache, tmp_path):
    assert condor_prefix.prefix("sid") == condor_prefix.prefix("sid") == tmp_path / "condor" / "sid"
    assert cache == ["sid"]
    assert condor_prefix.version(tmp_path / "condor/sid") == "25.1.2"


def test_the_suite_comes_from_the_environment_or_is_trixie(cache, monkeypatch):
    condor_prefix.prefix()
    monkeypatch.setenv("HTCONDOR_VPN_TEST_CONDOR", "sid")
    condor_prefix.prefix()
    assert cache == ["trixie", "sid"]


def test_a_prefix_that_was_moved_or_is_of_another_layout_is_built_anew(cache, tmp_path, monkeypatch):
    condor_prefix.prefix("sid")
    (tmp_path / "condor/sid").rename(tmp_path / "condor/trixie")
    condor_prefix.prefix("trixie")
    monkeypatch.setattr(condor_prefix, "LAYOUT", condor_prefix.LAYOUT + 1)
    condor_prefix.prefix("trixie")
    assert cache == ["sid", "trixie", "trixie"]


def test_a_suite_we_do_not_know_is_an_error(cache):
    with pytest.raises(UsageError, match="trixie, sid"):
        condor_prefix.prefix("bookworm")


def test_a_cache_that_cannot_be_written_is_an_error(cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HTCONDOR_VPN_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunFolderError, match="HTCONDOR_VPN_CACHE"):
        condor_prefix.prefix("sid")


@pytest.mark.parametrize("package", ["condor", "libc6", "zlib1g", "libscitokens0t64", "libpython3.13", "libssl3t64"])
def test_the_daemons_libraries_are_taken(package):
    assert condor_prefix.is_needed(package)


@pytest.mark.parametrize(
    "package", ["perl", "libperl5.40", "python3.13", "libpython3.13-stdlib", "systemd", "passwd", "libdate-manip-perl"]
)
def test_what_would_shadow_the_hosts_programs_is_left_out(package):
    assert not condor_prefix.is_needed(package)
