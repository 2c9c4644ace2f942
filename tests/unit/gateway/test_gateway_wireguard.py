"""The pilots of a WireGuard gateway, and the files that are made for them."""

import stat
from ipaddress import ip_address, ip_network

import pytest

from htcondor_vpn.addresses import WIREGUARD_V4
from htcondor_vpn.cli.main import main
from htcondor_vpn.errors import GatewayFolderError, TokenNameError
from htcondor_vpn.gateway import wireguard_pilots
from htcondor_vpn.gateway.wireguard_pilots import WireguardPilots, client_file, public_key, server_key
from htcondor_vpn.tunnel.carriers.wireguard_config import parse_config, read_config


@pytest.fixture
def pilots(tmp_path):
    with WireguardPilots(tmp_path) as pilots:
        yield pilots


def test_each_pilot_has_addresses_and_keys_of_its_own(pilots):
    made = [pilots.add(name) for name in ("a", "b", "c")]
    assert [pilot.addresses[0] for pilot, _ in made] == [WIREGUARD_V4[number] for number in (1, 2, 3)]
    assert len({key for pilot, private in made for key in (pilot.public_key, pilot.preshared_key, private)}) == 9
    peer = made[1][0].peer()
    assert peer.allowed_ips == (ip_network("198.18.128.2/32"), ip_network("fd68:7463:6f6e:2::2/128"))
    assert peer.public_key == public_key(made[1][1])
    assert pilots.list() == [pilot for pilot, _ in made]


def test_an_address_is_free_again(pilots):
    for name in ("a", "b", "c"):
        pilots.add(name)
    pilots.revoke("a")
    pilots.revoke("b")
    assert [pilots.add(name)[0].number for name in ("d", "e", "f")] == [1, 2, 4]


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a\nb", "[Peer]"])
def test_what_cannot_be_a_name(pilots, name):
    with pytest.raises(TokenNameError, match="cannot name a pilot"):
        pilots.add(name)


def test_names_that_are_taken_or_unknown(pilots):
    pilots.add("a")
    with pytest.raises(TokenNameError, match="already"):
        pilots.add("a")
    with pytest.raises(TokenNameError, match="no pilot b"):
        pilots.revoke("b")


def test_there_can_be_so_many(pilots, monkeypatch):
    monkeypatch.setattr(wireguard_pilots, "_LAST", 2)
    pilots.add("a")
    pilots.add("b")
    with pytest.raises(TokenNameError, match="there are 2 pilots already"):
        pilots.add("c")
    assert [pilot.name for pilot in pilots.list()] == ["a", "b"]


def test_another_process_is_noticed(pilots, tmp_path):
    assert pilots.changed()
    assert not pilots.changed()
    with WireguardPilots(tmp_path) as other:
        other.add("a")
    assert pilots.changed()
    assert not pilots.changed()


def test_the_file_is_what_the_engine_reads(pilots):
    pilot, private = pilots.add("a")
    config = parse_config(client_file(pilot, private, bytes(range(32)), "[2001:db8::1]:51820"))
    assert config.private_key == private
    assert tuple(each.ip for each in config.addresses) == pilot.addresses
    assert config.families == ("ipv4", "ipv6")
    assert config.name_servers == ("198.18.0.1", "fd68:7463:6f6e::1")
    (peer,) = config.peers
    assert (peer.public_key, peer.endpoint) == (bytes(range(32)), ("2001:db8::1", 51820))
    assert peer.preshared_key == pilot.preshared_key


def test_the_servers_key_is_made_once_and_private(tmp_path):
    key = server_key(tmp_path)
    assert server_key(tmp_path) == key
    path = tmp_path / "wireguard.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(GatewayFolderError, match="chmod 600"):
        server_key(tmp_path)
    path.chmod(0o600)
    path.write_text("nonsense\n")
    with pytest.raises(GatewayFolderError, match="is no key"):
        server_key(tmp_path)


def test_the_commands(tmp_path, capfd):
    options = ["gateway", "--dir", str(tmp_path / "gateway"), "wireguard"]
    file = tmp_path / "pilot.conf"
    assert main([*options, "add", "-o", str(file), "a"]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ip_address("198.18.128.1") in [each.ip for each in read_config(file).addresses]
    capfd.readouterr()
    assert main([*options, "add", "b"]) == 0
    assert parse_config(capfd.readouterr().out).peers
    assert main([*options, "list"]) == 0
    said = capfd.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["NAME", "a", "b"]
    assert "198.18.128.2" in said
    assert main([*options, "revoke", "a"]) == 0
    assert main([*options, "revoke", "a"]) == 67
    assert "no pilot a" in capfd.readouterr().err
