"""Issuers of tokens and of certificates, for tests: with keys of their own."""

import base64
import datetime
import json
import time
from dataclasses import dataclass, field

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class TokenIssuer:
    """A SciTokens issuer with one RSA and one EC key."""

    url: str = "https://issuer.example/vo"
    keys: dict = field(default_factory=dict)

    def __post_init__(self):
        self.keys = self.keys or {
            "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ec": ec.generate_private_key(ec.SECP256R1()),
        }

    def key_set(self):
        makers = {"rsa": jwt.algorithms.RSAAlgorithm, "ec": jwt.algorithms.ECAlgorithm}
        listed = [
            {**makers[name[:3].rstrip("-")].to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"}
            for name, key in self.keys.items()
        ]
        return json.dumps({"keys": listed}).encode()

    def token(self, key="rsa", headers=None, **claims):
        now = int(time.time())
        body = {"iss": self.url, "sub": "pilot", "aud": "https://gw.example", "iat": now, "nbf": now, "exp": now + 600}
        body = {name: value for name, value in {**body, **claims}.items() if value is not None}
        algorithm = "RS256" if key.startswith("rsa") else "ES256"
        return jwt.encode(body, self.keys[key], algorithm, headers={"kid": key, **(headers or {})})


def unsigned(header, claims, signature=b""):
    """A token of any header and claims, put together by hand."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


class Authority:
    """A CA for client certificates."""

    def __init__(self, name="Test CA"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._signed(self.name, self.key, ca=True)

    @property
    def pem(self):
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, name="pilot-1", alternatives=(), until=NOW + DAY):
        """Returns (certificate, key) of a pilot."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        return self._signed(subject, key, alternatives=alternatives, until=until), key

    def write(self, folder, **options):
        """Issues a certificate into files; returns (certificate, paths of certificate and key)."""
        certificate, key = self.issue(**options)
        paths = folder / "client.crt", folder / "client.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(pem(key))
        paths[1].chmod(0o600)
        return certificate, paths

    def revocation_list(self, *certificates, until=NOW + DAY, key=None):
        builder = x509.CertificateRevocationListBuilder(self.name, NOW - 2 * DAY, until)
        for each in certificates:
            entry = x509.RevokedCertificateBuilder(each.serial_number, NOW - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key or self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _signed(self, subject, key, *, ca=False, alternatives=(), until=NOW + 10 * DAY):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 3 * DAY).not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
        )  # fmt: skip
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        return builder.sign(self.key, hashes.SHA256())
