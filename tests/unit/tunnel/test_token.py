import pytest

from htcondor_vpn.errors import ConfigError, TokenUnusable
from htcondor_vpn.tunnel.token import read_credentials, read_token


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("abc-DEF_123\n")
    path.chmod(0o600)
    return path


def test_a_good_token(token_file):
    assert read_token(token_file) == "abc-DEF_123"


def test_no_token_configured():
    with pytest.raises(ConfigError, match="HTCONDOR_VPN_TOKEN_FILE"):
        read_token(None)


def test_missing(tmp_path):
    with pytest.raises(TokenUnusable, match="No such file"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_others_may_read_it(token_file, mode):
    token_file.chmod(mode)
    with pytest.raises(TokenUnusable, match="chmod 600"):
        read_token(token_file)


@pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", b"a\nb\n", b"\xff\xfe\n", b"a\x00b\n"])
def test_not_a_token(token_file, content):
    token_file.write_bytes(content)
    with pytest.raises(TokenUnusable, match="holds no token"):
        read_token(token_file)


def test_credentials(token_file):
    token_file.write_text("us:pass:word\n")
    assert read_credentials(token_file, "KNOB") == ("us", "pass:word")
    assert read_credentials(None, "KNOB") is None


@pytest.mark.parametrize("content", [b"", b"us\n", b"us:\n", b":pass\n", b"us:p\nx:y\n", b"us:\xff\n"])
def test_no_credentials(token_file, content):
    token_file.write_bytes(content)
    with pytest.raises(TokenUnusable, match="holds no password"):
        read_credentials(token_file, "KNOB")


def test_credentials_that_others_may_read(token_file):
    token_file.chmod(0o644)
    with pytest.raises(TokenUnusable, match="chmod 600"):
        read_credentials(token_file, "KNOB")
