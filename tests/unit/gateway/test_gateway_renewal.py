"""Keys and certificates that are renewed while a gateway runs: new connections get the new ones, flows go on."""

import asyncio

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from signing import Authority, pem

from htcondor_vpn.errors import GatewayUntrusted
from htcondor_vpn.gateway.trust.credentials import activate_rotation, given_credentials, pin_of, prepare_rotation
from htcondor_vpn.gateway.trust.folder import open_folder
from htcondor_vpn.gateway.trust.renewal import ServerTls
from htcondor_vpn.tunnel.carriers.gateway_connections import GatewayConnections
from htcondor_vpn.tunnel.carriers.gateways import Gateway
from htcondor_vpn.wire.renewed import Renewed
from htcondor_vpn.wire.trust import Trust, read_pins


async def serves(gateway, pin):
    """Waits until new connections get the key of this pin."""
    while await gateway.pin() != pin:
        await asyncio.sleep(0.05)


async def test_pilots_that_know_both_keys_go_on(running, echo_port):
    async with running() as gateway, echo_port() as port:
        _, following = prepare_rotation(gateway.folder)
        pins = read_pins(gateway.folder / "gateway.pin")
        both = Gateway(GatewayConnections("127.0.0.1", gateway.port, Trust(pins), lambda: gateway.token))
        old = Gateway(GatewayConnections("127.0.0.1", gateway.port, Trust(pins[:1]), lambda: gateway.token))
        flow = await gateway.flow(port)
        await both.probe()
        await old.probe()
        activate_rotation(gateway.folder)
        await serves(gateway, following)
        for pilot in (both, old):
            pilot.forget()
        await both.probe()
        with pytest.raises(GatewayUntrusted, match="another key") as refusal:
            await old.probe()
        assert "gateway.pin" in refusal.value.remedy
        await flow.write(b"still here")
        assert await flow.read() == b"still here"
        both.forget()


def write_pair(folder, authority):
    certificate, key = authority.issue("gateway")
    for name, data in (("key", pem(key)), ("crt", certificate.public_bytes(Encoding.PEM))):
        path = folder / f"new.{name}"
        path.touch(mode=0o600)
        path.write_bytes(data)
        path.replace(folder / f"own.{name}")
    return pin_of(certificate)


def test_a_certificate_of_ones_own_is_read_again(tmp_path, caplog):
    caplog.set_level("INFO")
    authority, folder = Authority(), open_folder(tmp_path / "gateway")
    first = write_pair(tmp_path, authority)
    tls = ServerTls(given_credentials(folder, tmp_path / "own.crt", tmp_path / "own.key"))
    before = tls.context
    tls.refresh()
    assert tls.context is before
    second = write_pair(tmp_path, authority)
    tls.refresh()
    assert tls.context is not before
    assert read_pins(folder / "gateway.pin") == (second,) != (first,)
    assert second in caplog.text


def test_half_of_a_renewal_is_waited_for(tmp_path, caplog):
    authority, folder = Authority(), open_folder(tmp_path / "gateway")
    write_pair(tmp_path, authority)
    tls = ServerTls(given_credentials(folder, tmp_path / "own.crt", tmp_path / "own.key"))
    before, old_key = tls.context, (tmp_path / "own.key").read_bytes()
    write_pair(tmp_path, authority)
    new_key = (tmp_path / "own.key").read_bytes()
    (tmp_path / "own.key").write_bytes(old_key)
    tls.refresh()
    assert caplog.text == ""
    for _ in range(3):
        tls.refresh()
    assert caplog.text.count("is not used") == 1
    assert tls.context is before
    (tmp_path / "own.key").write_bytes(new_key)
    tls.refresh()
    assert tls.context is not before
    (tmp_path / "own.key").unlink()
    tls.refresh()


async def test_a_running_pilot_reads_its_pins_again(running, tmp_path, caplog):
    async with running() as gateway:
        file = tmp_path / "pins"
        file.write_text(f"{gateway.credentials.pin}\n")
        trust = Trust(Renewed(file, read_pins, "what it held last"))
        pilot = Gateway(GatewayConnections("127.0.0.1", gateway.port, trust, lambda: gateway.token))
        await pilot.probe()
        _, following = prepare_rotation(gateway.folder)
        file.write_text("")  # half written: no reason to trust anyone else, or nobody
        await pilot.probe()
        await pilot.probe()
        assert caplog.text.count("holds no pin-sha256: line") == 1
        renew(file, f"{gateway.credentials.pin}\n{following}\n")
        await pilot.probe()
        activate_rotation(gateway.folder)
        await serves(gateway, following)
        pilot.forget()
        await pilot.probe()
        pilot.forget()


async def test_a_key_that_is_pinned_no_more_is_trusted_no_more(running, tmp_path):
    async with running() as gateway:
        file = tmp_path / "pins"
        file.write_text(f"{gateway.credentials.pin}\n")
        trust = Trust(Renewed(file, read_pins, "it"))
        pilot = Gateway(GatewayConnections("127.0.0.1", gateway.port, trust, lambda: gateway.token))
        await pilot.probe()
        assert await pilot.ask("GET", "/.well-known/htcondor-vpn", (), b"")
        renew(file, "pin-sha256:" + "A" * 43 + "=")
        for request in (pilot.probe(), pilot.ask("GET", "/.well-known/htcondor-vpn", (), b"")):  # connections are kept
            with pytest.raises(GatewayUntrusted):
                await request
        pilot.forget()


def renew(file, text):
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)
