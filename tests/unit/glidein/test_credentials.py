import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.errors import TokenUnusable
from htcondor_vpn.glidein.credentials import check_jwt, check_secret


def token(path, claims, mode=0o600):
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    path.touch(mode=mode)
    path.write_text(f"e30.{body}.c2ln\n")
    path.chmod(mode)
    return path


def test_a_token_that_lasts(tmp_path):
    check_jwt(token(tmp_path / "t", {"exp": time.time() + 1000}), 900)
    check_jwt(token(tmp_path / "t", {"sub": "no end"}), 1e9)


@pytest.mark.parametrize(
    ("claims", "mode", "says"),
    [
        ({"exp": 1000}, 0o600, "has expired"),
        ({}, 0o640, "read by others"),
        ({"exp": "soon"}, 0o600, "holds no token"),
    ],
)
def test_a_token_of_no_use(tmp_path, claims, mode, says):
    with pytest.raises(TokenUnusable, match=says):
        check_jwt(token(tmp_path / "t", claims, mode), 900)


def test_a_token_that_ends_before_the_pilot(tmp_path):
    with pytest.raises(TokenUnusable, match="the pilot in 900 s"):
        check_jwt(token(tmp_path / "t", {"exp": time.time() + 300}), 900)


@given(st.binary(max_size=200))
def test_whatever_is_in_the_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("secret") / "t"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(TokenUnusable):
        check_jwt(path)


@pytest.mark.parametrize("name", ["none", "."])
def test_what_is_no_file(tmp_path, name):
    with pytest.raises(TokenUnusable):
        check_secret(tmp_path / name)
