"""Pilots' client certificates (RFC 8446, 4.4.2): TLS has verified the chain, here is who it is.

The pilot's name is the certificate's first alternative name (DNS, e-mail, URI), or its common name.
"""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.folder import read_bytes, version_of
from htcondor_vpn.gateway.trust.identity import CredentialRefused, Identity, Presented, written

KIND = "certificate"
_END = b"-----END X509 CRL-----"


class ClientCertificates:
    """The `Authenticator` of certificates under the CAs in `ca_file`, as far as the lists in `crl_file` allow them."""

    def __init__(self, ca_file: Path, crl_file: Path | None = None) -> None:
        self._ca_file, self._crl_file = ca_file, crl_file
        self._lists: dict[bytes, datetime.datetime] = {}
        self._revoked: frozenset[str] = frozenset()
        self._version: object = None
        self.refresh()

    def identify(self, presented: Presented) -> Identity | None:
        if presented.certificate is None:
            return None
        try:
            certificate = x509.load_der_x509_certificate(presented.certificate)
            names = _names(certificate)
        except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
            raise CredentialRefused("a certificate that cannot be understood") from error
        if not names:
            raise CredentialRefused("a certificate that names nobody")
        issuer = certificate.issuer.public_bytes()
        digest = hashlib.sha256(presented.certificate).digest()
        listed = _listed(issuer, certificate.serial_number)
        marks = {f"serial:{certificate.serial_number:x}", f"sha256:{digest.hex()}", listed}
        marks |= {f"{KIND}:{written(name)}" for name in names}
        expires = certificate.not_valid_after_utc.timestamp()
        identity = Identity(KIND, f"{KIND}:{written(names[0])}", digest, expires, frozenset(marks))
        self._check_revocation(issuer, identity)
        return identity

    def _check_revocation(self, issuer: bytes, identity: Identity) -> None:
        if self._crl_file is None:
            return
        good_until = self._lists.get(issuer)
        if good_until is None:
            raise CredentialRefused(f"the CA of {identity.name} has no revocation list in {self._crl_file}")
        if good_until <= datetime.datetime.now(datetime.timezone.utc):
            raise CredentialRefused(f"the revocation list for {identity.name} is out of date since {good_until}")
        if self.revoked(identity):
            raise CredentialRefused(f"{identity.name} is revoked by its CA")

    def revoked(self, identity: Identity) -> bool:
        return identity.kind == KIND and not self._revoked.isdisjoint(identity.marks)

    def refresh(self) -> None:
        if self._crl_file is None:
            return
        version = version_of(self._crl_file), version_of(self._ca_file)
        if version == self._version:
            return
        try:
            authorities = x509.load_pem_x509_certificates(read_bytes(self._ca_file))
        except ValueError as error:
            raise GatewayFolderError(f"{self._ca_file} holds no certificate", "give the CAs in PEM form") from error
        lists, revoked = {}, set()
        for crl in _read_lists(self._crl_file):
            issuer = crl.issuer.public_bytes()
            if not any(_is_signed(crl, ca) for ca in authorities):
                cause = f"{self._crl_file} has a list of {crl.issuer.rfc4514_string()}, signed by no CA in "
                raise GatewayFolderError(f"{cause}{self._ca_file}", "put that CA there, or take the list away")
            lists[issuer] = crl.next_update_utc or datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)
            revoked |= {_listed(issuer, entry.serial_number) for entry in crl}
        self._lists, self._revoked, self._version = lists, frozenset(revoked), version


def _names(certificate: x509.Certificate) -> list[str]:
    names: list[str] = []
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        for kind in (x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier):
            names += alternatives.get_values_for_type(kind)
    names += [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return [name for name in names if name]


def _read_lists(path: Path) -> list[x509.CertificateRevocationList]:
    blocks = read_bytes(path).split(_END)[:-1]
    try:
        return [x509.load_pem_x509_crl(block + _END + b"\n") for block in blocks]
    except ValueError as error:
        raise GatewayFolderError(f"{path} holds no revocation lists", "give them in PEM form") from error


def _is_signed(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    try:
        return crl.issuer == ca.subject and crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _listed(issuer: bytes, serial: int) -> str:
    """A mark of our own: serial numbers are unique for each CA only."""
    return f"{hashlib.sha256(issuer).hexdigest()}/{serial:x}"
