"""The users of an ocserv gateway, by ocserv's own program."""

import shutil

import pytest

from htcondor_vpn.errors import TokenNameError
from htcondor_vpn.gateway.ocserv_users import OcservUsers


@pytest.mark.skipif(shutil.which("ocpasswd") is None, reason="there is no ocpasswd on this machine")
def test_users_come_and_go(tmp_path):
    users = OcservUsers(tmp_path / "gateway")
    assert users.list() == []
    password = users.add("site-a")
    assert len(password) >= 32
    assert users.add("pilot@b.example") != password
    assert users.list() == ["site-a", "pilot@b.example"]
    file = tmp_path / "gateway/ocserv/passwd"
    assert password not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(TokenNameError, match="already"):
        users.add("site-a")
    users.revoke("site-a")
    assert users.list() == ["pilot@b.example"]
    with pytest.raises(TokenNameError, match="no user"):
        users.revoke("site-a")


@pytest.mark.parametrize("name", ["", "-d", "a b", "a:b", "a\nb", "../x", "x" * 65])
def test_what_is_no_name(tmp_path, name):
    with pytest.raises(TokenNameError, match="no name"):
        OcservUsers(tmp_path / "gateway").add(name)
