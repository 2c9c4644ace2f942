"""The gateway's key and certificate, and the pin by which the pilots know it.

At the first start a gateway makes an ECDSA P-256 key and a self-signed certificate, and writes the pin to a file that
is shipped with the pilots. As the pin is that of the public key, it outlives the certificate. A next key may be made
while the present one is in use, so that pilots know both by the time that it takes over (as RFC 7469's backup pins).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.folder import check_private, locked, read_bytes, write_atomically

KEY, CERTIFICATE, PIN, NEXT_KEY = "gateway.key", "gateway.crt", "gateway.pin", "gateway.next.key"
VALIDITY = datetime.timedelta(days=20 * 365)


@dataclass(frozen=True)
class Credentials:
    """Where the key and the certificate (a chain, the gateway's own first) lie, and the pin of the public key.

    `folder` is the gateway's own, with the file of pins.
    """

    folder: Path
    certificate: Path
    key: Path
    pin: str

    def server_context(self, client_ca: Path | None = None) -> ssl.SSLContext:
        """Returns a context for TLS 1.3 with session tickets; raises `GatewayFolderError` for an unusable pair.

        With `client_ca` pilots may show a certificate, for which one of the CAs in that file has to vouch.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            cause = f"{self.certificate} and {self.key} are no usable certificate and key"
            raise GatewayFolderError(f"{cause} ({_reason(error)})", "give a matching pair in PEM form") from error
        if client_ca is not None:
            try:
                context.load_verify_locations(client_ca)
            except (OSError, ValueError) as error:
                cause = f"{client_ca} holds no usable CA certificate ({_reason(error)})"
                raise GatewayFolderError(cause, "give the pilots' CAs in PEM form") from error
            context.verify_mode = ssl.CERT_OPTIONAL
        return context


def own_credentials(folder: Path, names: Sequence[str]) -> Credentials:
    """Returns the credentials in `folder`, which are made for `names` (host names, addresses) where they are missing.

    A certificate that got lost is made again from the key, so that the pin stays. Raises `GatewayFolderError`.
    """
    key_path, certificate_path = folder / KEY, folder / CERTIFICATE
    with locked(folder):
        if not key_path.exists():
            write_atomically(key_path, _new_key(), 0o600)
            certificate_path.unlink(missing_ok=True)
        if certificate_path.exists() and not _is_pair(certificate_path, key_path):
            certificate_path.unlink()  # a rotation was interrupted between the two
        if not certificate_path.exists():
            write_atomically(certificate_path, _self_signed(key_path, names), 0o644)
    return given_credentials(folder, certificate_path, key_path)


def given_credentials(folder: Path, certificate: Path, key: Path) -> Credentials:
    """Returns an operator's own pair after checking it, and writes its pin to `folder`.

    Raises `GatewayFolderError` for a key that others may read, and for what cannot be read or understood.
    """
    pin = pin_of(_load_certificate(certificate))
    if not _is_pair(certificate, key):
        raise GatewayFolderError(f"{key} is not the key of {certificate}", "give a matching pair in PEM form")
    with locked(folder):
        _write_pins(folder, pin)
    return Credentials(folder, certificate, key, pin)


def prepare_rotation(folder: Path) -> tuple[str, str]:
    """Makes the next key, if there is none yet, and adds its pin to the file that pilots get.

    Returns the present pin and the next one; raises `GatewayFolderError`.
    """
    with locked(folder):
        present = public_pin(_load_key(folder / KEY).public_key())
        if not (folder / NEXT_KEY).exists():
            write_atomically(folder / NEXT_KEY, _new_key(), 0o600)
        return present, _write_pins(folder, present)[-1]


def activate_rotation(folder: Path) -> str:
    """Puts the next key into the place of the present one, with a certificate for the same names; returns its pin.

    Raises `GatewayFolderError` if there is no next key.
    """
    with locked(folder):
        if not (folder / NEXT_KEY).exists():
            remedy = "run `htcondor-vpn gateway rotate --prepare`, and ship its pin first"
            raise GatewayFolderError(f"there is no next key in {folder}", remedy)
        names = names_of(_load_certificate(folder / CERTIFICATE))
        _load_key(folder / NEXT_KEY)
        (folder / NEXT_KEY).replace(folder / KEY)
        write_atomically(folder / CERTIFICATE, _self_signed(folder / KEY, names), 0o644)
        pin = pin_of(_load_certificate(folder / CERTIFICATE))
        _write_pins(folder, pin)
        return pin


def _write_pins(folder: Path, present: str) -> list[str]:
    """Writes the present pin, and that of the next key if there is one, to the file that pilots get; returns them."""
    pins = [present]
    if (folder / NEXT_KEY).exists():
        pins.append(public_pin(_load_key(folder / NEXT_KEY).public_key()))
    text = "".join(f"{pin}\n" for pin in pins).encode()
    if not (folder / PIN).exists() or read_bytes(folder / PIN) != text:
        write_atomically(folder / PIN, text, 0o644)
    return pins


def _is_pair(certificate: Path, key: Path) -> bool:
    return public_pin(_load_key(key).public_key()) == pin_of(_load_certificate(certificate))


def names_of(certificate: x509.Certificate) -> list[str]:
    """Returns the host names and addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def pin_of(certificate: x509.Certificate) -> str:
    """Returns `pin-sha256:` and the base64 SHA-256 of the certificate's SubjectPublicKeyInfo (RFC 7469, 2.4)."""
    return public_pin(certificate.public_key())


def public_pin(key: object) -> str:
    """Returns the pin of a public key."""
    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return "pin-sha256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()


def _new_key() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _self_signed(key_path: Path, names: Sequence[str]) -> bytes:
    key = _load_key(key_path)
    public = key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "htcondor-vpn gateway")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # A pilot's clock may be behind.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(identifier, False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except (UnicodeError, ValueError):
        raise GatewayFolderError(f"{name!r} is no host name", "give the gateway's name with --name") from None


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_bytes(path))
    except ValueError as error:
        raise GatewayFolderError(f"{path} is not a certificate ({_reason(error)})", "give it in PEM form") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        check_private(path)
        key = load_pem_private_key(read_bytes(path), password=None)
    except OSError as error:
        raise GatewayFolderError(f"{path} cannot be read: {error.strerror}", "check its owner and mode") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        remedy = "give it in PEM form, without a passphrase"
        raise GatewayFolderError(f"{path} is not a private key ({_reason(error)})", remedy) from error
    return key  # type: ignore[return-value]  # an operator's own may be RSA: only what all kinds can do is used then


def _no_passphrase() -> str:
    """Keeps OpenSSL from asking at the terminal."""
    return ""


def _reason(error: BaseException) -> str:
    """The first sentence of what a library says: behind it are its own links, and guesses."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
