import pytest

from htcondor_vpn.errors import ConfigError, TokenUnusable
from htcondor_vpn.tunnel.carriers.token import check_private_key, read_credentials, read_token, renewed_token


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


def replace(path, text, mode=0o600):
    """Renews a file as those who do it well do: by a rename."""
    new = path.with_name("new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)


def test_a_renewed_token_is_read_again(token_file):
    token = renewed_token(token_file)
    assert token() == "abc-DEF_123"
    replace(token_file, "second")
    assert token() == "second"
    token_file.write_text("third, in place".replace(", ", "-").replace(" ", "-"))
    assert token() == "third-in-place"


@pytest.mark.parametrize("spoil", ["gone", "open", "empty"])
def test_the_last_good_token_counts_while_the_file_is_not(token_file, spoil, caplog):
    token = renewed_token(token_file)
    if spoil == "gone":
        token_file.unlink()
    else:
        replace(token_file, "" if spoil == "empty" else "stolen?", 0o644 if spoil == "open" else 0o600)
    assert [token(), token()] == ["abc-DEF_123"] * 2
    assert len(caplog.records) == (0 if spoil == "gone" else 1)  # it may be deleted once COMMAND runs
    assert "stolen" not in caplog.text
    replace(token_file, "good again")
    replace(token_file, "good-again")
    assert token() == "good-again"


def test_a_token_that_does_not_change_is_not_read(token_file, monkeypatch):
    token = renewed_token(token_file)
    opened = "htcondor_vpn.tunnel.carriers.token.open"
    monkeypatch.setattr(opened, lambda *_: pytest.fail("it is opened"), raising=False)
    assert [token() for _ in range(3)] == ["abc-DEF_123"] * 3


def test_a_private_key_is_private(tmp_path):
    key = tmp_path / "key"
    key.write_text("-----BEGIN PRIVATE KEY-----")
    key.chmod(0o640)
    with pytest.raises(TokenUnusable, match="private key"):
        check_private_key(key)
    key.chmod(0o600)
    check_private_key(key)
