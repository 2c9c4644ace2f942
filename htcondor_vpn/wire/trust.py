"""How a pilot knows its gateway: by a pin of the public key, or by a CA.

The check is over before anything is said to the gateway: a wrong one never sees a credential.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from asn1crypto.x509 import Certificate

from htcondor_vpn import knob_values
from htcondor_vpn.errors import ConfigError, ConfigUnreadable, GatewayUntrusted, TokenUnusable
from htcondor_vpn.wire.tls import TlsStream

#: Returns the pins that count now.
Pins = Callable[[], "tuple[str, ...]"]

log = logging.getLogger(__name__)

#: X509_V_FLAG_PARTIAL_CHAIN and X509_V_FLAG_NO_CHECK_TIME of openssl/x509_vfy.h; `ssl` has the first from 3.10 on.
_PARTIAL_CHAIN, _NO_CHECK_TIME = 0x80000, 0x200000


def pin_of(certificate: bytes) -> str:
    """Returns `pin-sha256:…` of a DER certificate's public key (RFC 7469, 2.4; as openconnect's --servercert)."""
    key = Certificate.load(certificate).public_key.dump()
    return "pin-sha256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii")


def read_pins(path: Path) -> tuple[str, ...]:
    """Returns the pins of a `gateway.pin` file, one a line; raises `ConfigUnreadable`, also for half of a pin."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigUnreadable(f"the pin file {path} cannot be read: {reason}", "check its path") from error
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
    """Checks gateways against `pins`, or without any against the CA in `ca_file`; one of the two is required.

    Pins may be renewed, and a gateway whose pin is gone is trusted no more: they are asked for each time. `certificate`
    is our own for them, as files: the chain, and its private key. It is read again when it is renewed.
    """

    def __init__(
        self,
        pins: tuple[str, ...] | Pins = (),
        ca_file: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self._get_pins: Pins = pins if callable(pins) else lambda: pins
        self._pins = self._get_pins()
        if not self._pins and ca_file is None:
            raise ConfigError(
                "nothing tells which gateway to trust",
                "set HTCONDOR_VPN_GATEWAY_PIN, HTCONDOR_VPN_GATEWAY_PIN_FILE or HTCONDOR_VPN_GATEWAY_CA_FILE "
                "(--pin, --pin-file or --ca-file)",
            )
        if self._pins and ca_file is not None:
            _load_ca(_client_context(), ca_file)  # it is not used; but one that cannot be read was meant to be
        self._ca_file, self._certificate = ca_file, certificate
        self._known: dict[bytes, bytes] = {}  # certificates whose key was found to be pinned, by their digest
        self._version = self._look()
        self._context: ssl.SSLContext | None = self._new_context()

    @property
    def context(self) -> ssl.SSLContext:
        """What to connect with now; it is another object once our own certificate, or the pins, were renewed.

        Raises `TokenUnusable` where the certificate had to be read again, and cannot be.
        """
        self._refresh_pins()
        version = self._look()
        if self._context is None or version != self._version:
            self._version = version
            try:
                self._context = self._new_context()
            except TokenUnusable as error:
                if self._context is None:  # it knew gateways by pins that are gone
                    raise
                log.error("%s; the last certificate is used", error)
        return self._context

    def _refresh_pins(self) -> None:
        pins = self._get_pins()
        if pins != self._pins:
            log.info("the gateways' pins are now %s", " ".join(pins))
            self._pins, self._known, self._context = pins, {}, None

    @property
    def reconnaissance(self) -> ssl.SSLContext | None:
        """What to connect with if `context` does not know the gateway, to `check` it; None if there is no use in it.

        Our certificate tells who we are, and goes to the gateway within the handshake. So with pins of keys, which
        only `check` knows about, it is kept back until we have seen the gateway's certificate.
        """
        return self._unchecked_context() if self._pins and self._certificate else None

    def check(self, stream: TlsStream, gateway: str) -> None:
        """Raises `GatewayUntrusted` unless the peer's key is pinned; with a CA the handshake has checked it."""
        self._refresh_pins()
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
        self._known[digest] = certificate
        if self._certificate and self._context is not None:
            self._context.load_verify_locations(cadata=certificate)

    def _new_context(self) -> ssl.SSLContext:
        if not self._pins:
            assert self._ca_file is not None  # or it had been raised
            context = _client_context()
            _load_ca(context, self._ca_file)
        elif self._certificate:
            context = _client_context()
            context.check_hostname = False
            context.verify_flags |= _PARTIAL_CHAIN | _NO_CHECK_TIME  # it is known by its key, which has no end
            for each in self._known.values():
                context.load_verify_locations(cadata=each)
        else:
            context = self._unchecked_context()
        if self._certificate:
            try:
                context.load_cert_chain(*self._certificate, password=_no_passphrase)
            except (OSError, ValueError) as error:
                cause = f"{self._certificate[0]} and {self._certificate[1]} are no usable certificate and key: {error}"
                raise TokenUnusable(cause, "give a matching pair in PEM form, without a passphrase") from error
        return context

    @staticmethod
    def _unchecked_context() -> ssl.SSLContext:
        context = _client_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the pin is checked instead, by `check`
        return context

    def _look(self) -> list[tuple[int, int, int]]:
        """What tells one version of our own files from another."""
        try:
            found = [path.stat() for path in self._certificate or ()]
        except OSError:
            return []
        return [(status.st_ino, status.st_mtime_ns, status.st_size) for status in found]


def _load_ca(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigUnreadable(
            f"the CA file {path} cannot be read: {error.strerror or error}",
            "check HTCONDOR_VPN_GATEWAY_CA_FILE (--ca-file); it must hold PEM",
        ) from error


def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _no_passphrase() -> str:
    """Keeps OpenSSL from asking at the terminal."""
    return ""
