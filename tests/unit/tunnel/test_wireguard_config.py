"""WireGuard's configuration files, as wg-quick reads them."""

from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcondor_vpn.errors import ConfigUnreadable, TokenUnusable
from htcondor_vpn.tunnel.carriers.wireguard_config import DEFAULT_MTU, parse_config, read_config
from htcondor_vpn.wire.wireguard import key_text

KEY, OTHER, SHARED = (key_text(bytes([number]) * 32) for number in (1, 2, 3))
FULL = f"""
# handed out by the VPN's admin
[Interface]
PrivateKey = {KEY}
Address = 198.18.128.2/24, fd00::2/64   # both families
DNS = 198.18.128.1
DNS=fd00::1
MTU = 1380
ListenPort = 0

[peer]
publickey = {OTHER}
PresharedKey = {SHARED}
Endpoint = [2001:db8::1]:51820
AllowedIPs = 0.0.0.0/0
AllowedIPs = ::/0
PersistentKeepalive = 25
"""
SMALL = f"[Interface]\nPrivateKey={KEY}\nAddress=10.0.0.2\n[Peer]\nPublicKey={OTHER}\nEndpoint=vpn.example.org:51820\n"
PEER = f"[Peer]\nPublicKey={SHARED}\nEndpoint=b.example.org:1\nAllowedIPs=10.1.0.0/16\n"


def test_all_that_a_file_may_have():
    config = parse_config(FULL)
    assert config.private_key == bytes([1]) * 32
    assert config.addresses == (IPv4Interface("198.18.128.2/24"), IPv6Interface("fd00::2/64"))
    assert config.name_servers == ("198.18.128.1", "fd00::1")
    assert (config.mtu, config.listen_port) == (1380, 0)
    (peer,) = config.peers
    assert peer.public_key == bytes([2]) * 32
    assert peer.preshared_key == bytes([3]) * 32
    assert peer.endpoint == ("2001:db8::1", 51820)
    assert peer.allowed_ips == (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    assert peer.keepalive_seconds == 25


def test_what_may_be_left_out():
    config = parse_config(SMALL + "AllowedIPs = 10.0.0.7/8\n" + PEER)
    assert (config.mtu, config.listen_port, config.name_servers) == (DEFAULT_MTU, None, ())
    assert config.peers[0].allowed_ips == (IPv4Network("10.0.0.0/8"),)
    assert config.peers[0].preshared_key is None
    assert config.peers[0].keepalive_seconds == 0
    assert len(config.peers) == 2


def test_lines_may_end_as_they_do_elsewhere():
    assert parse_config(FULL.replace("\n", "\r\n")) == parse_config(FULL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no [Interface]"),
        (SMALL, "no AllowedIPs"),
        ("PrivateKey = x", "line 1: neither a section nor NAME = VALUE in one"),
        (FULL + "[Interface]\n", "there is an [Interface] already"),
        (FULL + "PostUp = iptables -A FORWARD\n", "PostUp is refused: no commands are run"),
        (FULL + "predown = rm -rf ~\n", "PreDown is refused"),
        (FULL + "Table = off\n", "'table' is not understood here"),
        (FULL + "PublicKey = " + SHARED, "publickey is there already"),
        (FULL + "AllowedIPs = ::/0", "allowedips has an entry twice"),
        (FULL.replace("1380", "70000"), "the value of mtu is not a whole number between 576 and 65535"),
        (FULL.replace("DNS=fd00::1", "DNS = example.org"), "search domains are not used here"),
        (FULL.replace("[2001:db8::1]:51820", "vpn.example.org"), "the value of endpoint is not HOST:PORT"),
        (FULL.replace("0.0.0.0/0", "0.0.0.0/0,"), "has an entry that is no ADDRESS"),
        (FULL.replace(KEY, KEY[:-2] + "=="), "the value of privatekey is no key"),
        (FULL.replace(f"PrivateKey = {KEY}", ""), "[Interface] has no PrivateKey"),
        (FULL.partition("[peer]")[0], "there is no [Peer]"),
        (FULL + PEER.replace(SHARED, OTHER), "two [Peer] sections have the same PublicKey"),
        (SMALL + "AllowedIPs = ::/0", "no IP version of which there are both"),
    ],
)
def test_what_is_wrong_is_said(text, words):
    with pytest.raises(ValueError, match="^") as error:
        parse_config(text)
    assert words in str(error.value)


def test_a_key_is_never_shown(tmp_path):
    config = parse_config(FULL)
    for secret in (config.private_key, config.peers[0].preshared_key):
        assert repr(secret) not in repr(config)
    path = tmp_path / "wg.conf"
    path.touch(0o600)
    path.write_text(FULL.replace(f"PrivateKey = {KEY}", f"PrivateKey {KEY}"))
    with pytest.raises(ConfigUnreadable) as error:
        read_config(path)
    assert f"{path}: line 4" in str(error.value)
    assert KEY not in str(error.value)


def test_a_file_is_for_its_owner_alone(tmp_path):
    path = tmp_path / "wg.conf"
    with pytest.raises(ConfigUnreadable, match="No such file"):
        read_config(path)
    path.write_text(FULL)
    path.chmod(0o640)
    with pytest.raises(TokenUnusable, match="chmod 600"):
        read_config(path)
    path.chmod(0o600)
    assert read_config(path) == parse_config(FULL)


words = st.sampled_from([*FULL.split(), "=", ",", "[", "]", "#", "\n", "\x00", "PostUp", "::/0", "-1"]) | st.text()


@given(st.lists(words, max_size=60).map(" ".join) | st.text())
def test_whatever_a_file_holds_it_is_read_or_refused(text):
    try:
        config = parse_config(text)
    except ValueError:
        return
    assert config.peers
    assert config.addresses
    assert config.families


@given(st.integers(0, len(FULL.splitlines())), st.text(alphabet="abcPUD=[]# \t/0:.,", max_size=30))
def test_a_line_too_many_is_never_passed_over(number, line):
    lines = FULL.splitlines()
    lines.insert(number, line)
    bare = line.partition("#")[0].strip()
    if not bare:
        assert parse_config("\n".join(lines)) == parse_config(FULL)
    else:
        with pytest.raises(ValueError, match=r"line|there is"):
            parse_config("\n".join(lines))
