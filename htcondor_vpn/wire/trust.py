"""How a pilot knows its gateway: by a pin of the public key, or by a CA.

The check is over before anything is said to the gateway: a wrong one never sees a credential.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path

from asn1crypto.x509 import Certificate

from htcondor_vpn import knob_values
from htcondor_vpn.errors import ConfigError, ConfigUnreadable, GatewayUntrusted
from htcondor_vpn.wire.tls import TlsStream


def pin_of(certificate: bytes) -> str:
    """Returns `pin-sha256:…` of a DER certificate's public key (RFC 7469, 2.4; as openconnect's --servercert)."""
    key = Certificate.load(certificate).public_key.dump()
    return "pin-sha256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii")


def read_pins(path: Path) -> tuple[str, ...]:
    """Returns the pins of a `gateway.pin` file, one a line; raises `ConfigUnreadable`, also for half of a pin."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigUnreadable(f"the pin file {path} cannot be read: {error}", "check its path") from error
    pins = tuple(word for word in words if word.startswith("pin-sha256:"))
    if not pins:
        raise ConfigUnreadable(f"the pin file {path} holds no pin-sha256: line", "take the gateway's gateway.pin")
    for pin in pins:
        try:
            knob_values.pin(pin)
        except ValueError as error:  # it would be no gateway's key
            raise ConfigUnreadable(f"the pin file {path}: {pin} {error}", "take the gateway's gateway.pin") from None
    return pins


class Trust:
    """Checks gateways against `pins`, or without any against the CA in `ca_file`; one of the two is required."""

    def __init__(self, pins: tuple[str, ...] = (), ca_file: Path | None = None) -> None:
        if not pins and ca_file is None:
            raise ConfigError(
                "nothing tells which gateway to trust",
                "set HTCONDOR_VPN_GATEWAY_PIN, HTCONDOR_VPN_GATEWAY_PIN_FILE or HTCONDOR_VPN_GATEWAY_CA_FILE",
            )
        self._pins = frozenset(pins)
        self._known: set[bytes] = set()  # digests of certificates whose key was found to be pinned
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self._pins:
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE  # the pin is checked instead, by `check`
        else:
            try:
                self.context.load_verify_locations(ca_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigUnreadable(f"the CA file {ca_file} cannot be read: {error}", "it must hold PEM") from error

    def check(self, stream: TlsStream, gateway: str) -> None:
        """Raises `GatewayUntrusted` unless the peer's key is pinned; with a CA the handshake has checked it."""
        if not self._pins:
            return
        certificate = stream.peer_certificate or b""
        digest = hashlib.sha256(certificate).digest()
        if digest in self._known:
            return
        pin = pin_of(certificate)
        if pin not in self._pins:
            raise GatewayUntrusted(
                f"the gateway {gateway} has another key ({pin}) than the pinned one; no credential was sent",
                "if the gateway's key was renewed, ship its new gateway.pin with the pilots",
            )
        self._known.add(digest)
