"""How a pilot is told which gateway to trust."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from htcondor_vpn.errors import ConfigError, ConfigUnreadable
from htcondor_vpn.wire.trust import Trust, read_pins

PIN, OTHER = "pin-sha256:" + "A" * 43 + "=", "pin-sha256:" + "B" * 43 + "="


def test_the_pins_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.pin"
    file.write_text(f"# one, and its successor\n{PIN}\n{OTHER}\n")
    assert read_pins(file) == (PIN, OTHER)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no pin"),
        (b"sha256:abc\n", "holds no pin"),
        (PIN[:-5].encode(), "44 characters"),
        (f"{PIN}\npin-sha256:\n".encode(), "44 characters"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_holds_none_or_half_of_one(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "gateway.pin"
    file.write_bytes(content)
    with pytest.raises(ConfigUnreadable, match=says) as caught:
        read_pins(file)
    assert str(file) in caught.value.cause
    assert caught.value.remedy


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable, match="cannot be read"):
        read_pins(tmp_path / "none")


def test_without_any_trust_nothing_is_trusted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing tells which gateway"):
        Trust()
    (tmp_path / "ca.pem").write_text("no PEM")
    with pytest.raises(ConfigUnreadable, match="CA file"):
        Trust(ca_file=tmp_path / "ca.pem")


def test_a_ca_beside_a_pin_has_to_be_there_though_it_is_not_used(certificate: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable, match=r"none.pem cannot be read: No such file"):
        Trust(pins=(PIN,), ca_file=tmp_path / "none.pem")
    assert Trust(pins=(PIN,), ca_file=certificate).context.verify_mode == ssl.CERT_NONE


def test_a_ca_is_asked_for_the_name_too(certificate: Path) -> None:
    context = Trust(ca_file=certificate).context
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
