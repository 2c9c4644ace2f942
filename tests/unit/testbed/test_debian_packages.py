"""Which Debian packages are missing: neither installed to the end nor replaced by a program from elsewhere."""

import pytest

from htcondor_vpn.testbed import debian_packages


@pytest.fixture
def dpkg(tmp_path, monkeypatch):
    """Replaces dpkg-query by one that prints the given lines and fails, as it does for unknown packages."""

    def install(*lines):
        script = tmp_path / "dpkg-query"
        script.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + "exit 1\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


def test_an_installed_package_is_not_missing(dpkg):
    dpkg("curl installed")
    assert debian_packages.missing_packages({"curl": "no-such-program"}) == []


@pytest.mark.parametrize("status", ["half-installed", "unpacked", "half-configured", "triggers-pending"])
def test_a_package_whose_installation_was_interrupted_is_missing(dpkg, status):
    dpkg(f"coreutils {status}")
    assert debian_packages.missing_packages({"coreutils": "sh"}) == ["coreutils"]


def test_a_program_from_elsewhere_will_do(dpkg):
    dpkg("dash not-installed")
    assert debian_packages.missing_packages({"dash": "sh", "other": "no-such-program"}) == ["other"]


def test_without_dpkg_the_programs_decide(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert debian_packages.missing_packages({"dash": "sh", "other": "no-such-program"}) == ["other"]


@pytest.fixture
def policy(tmp_path, monkeypatch):
    path = tmp_path / "policy-rc.d"
    monkeypatch.setattr(debian_packages, "POLICY", path)
    return path


def test_a_policy_that_an_interrupted_run_left_is_removed_and_its_services_kept_off(policy, monkeypatch):
    kept_off = []
    monkeypatch.setattr(debian_packages, "_keep_off", kept_off.extend)
    debian_packages.write_policy(["ssh", "ocserv"])
    debian_packages.end_policy()
    assert kept_off == ["ssh", "ocserv"]
    assert not policy.exists()


def test_a_policy_of_the_machines_own_stays(policy):
    policy.write_text("#!/bin/sh\nexit 101\n")
    debian_packages.write_policy(["ssh"])
    debian_packages.end_policy()
    assert policy.read_text() == "#!/bin/sh\nexit 101\n"
