from __future__ import annotations

import pwd

import pytest

from htcondor_vpn.errors import AccountUnusable
from htcondor_vpn.testbed import account


def test_sudo_says_whose_account_it_is() -> None:
    daemon = pwd.getpwnam("daemon")
    found = account.ordinary_account({"SUDO_UID": str(daemon.pw_uid)})
    assert found == ("daemon", daemon.pw_uid, daemon.pw_gid, daemon.pw_dir)


@pytest.mark.parametrize("environ", [{}, {"SUDO_UID": "0"}, {"SUDO_UID": "me"}, {"SUDO_UID": ""}])
def test_otherwise_it_is_the_projects(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "NAME", "daemon")
    assert account.ordinary_account(environ).name == "daemon"


def test_no_account_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "NAME", "no-such-account")
    with pytest.raises(AccountUnusable, match="useradd --system --create-home no-such-account"):
        account.ordinary_account({})
    with pytest.raises(AccountUnusable):
        account.ordinary_account({"SUDO_UID": "3999999999"})


def test_roots_own_variables_stay_with_root() -> None:
    someone = account.Account("someone", 1234, 1234, "/home/someone")
    root = {
        "HOME": "/root", "USER": "root", "PATH": "/root/bin", "TMPDIR": "/root/tmp", "SECRET_KEY": "x",
        "XDG_RUNTIME_DIR": "/run/user/0", "SUDO_UID": "1234", "TERM": "xterm", "LC_ALL": "C", "PYTEST_ADDOPTS": "-x",
        "HTCONDOR_VPN_CACHE": "/var/cache/x", "_CONDOR_HTCONDOR_VPN_LOG_LEVEL": "debug",
    }  # fmt: skip
    assert account.environment(someone, root) == {
        "HOME": "/home/someone", "USER": "someone", "LOGNAME": "someone", "PATH": account.PATH,
        "TERM": "xterm", "LC_ALL": "C", "PYTEST_ADDOPTS": "-x",
        "HTCONDOR_VPN_CACHE": "/var/cache/x", "_CONDOR_HTCONDOR_VPN_LOG_LEVEL": "debug",
    }  # fmt: skip
