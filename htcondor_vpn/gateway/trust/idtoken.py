"""HTCondor's IDTOKENs: JSON Web Tokens that a pool signs with a key of its own, and pilots authenticate by.

The signing key is derived from a file of SEC_PASSWORD_DIRECTORY as HTCondor does it (getTokenSigningKey in
condor_utils/store_cred.cpp, generate_token in condor_io/condor_auth_passwd.cpp): the file is XORed with a constant, the
key called POOL is doubled besides, and HKDF-SHA256 (RFC 5869) makes 32 bytes of it.

The key is symmetric: who can verify a pool's tokens can make them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.folder import check_private, read_bytes, version_of
from htcondor_vpn.gateway.trust.identity import CredentialRefused

_SCRAMBLE = b"\xde\xad\xbe\xef"
_POOL = "POOL"


class Pool:
    """The `Issuer` of the tokens of one pool.

    `folder` holds its signing keys, named as in the tokens (kid), each in a file of mode 0600. A token that is limited
    to some authorizations must have one of `scopes`, such as `condor:/ADVERTISE_STARTD`; one without limits has all.
    """

    kind = "idtoken"
    algorithms: Sequence[str] = ("HS256",)
    audiences: Sequence[str] | None = None
    required_claims: Sequence[str] = ("sub", "jti", "iat")

    def __init__(self, trust_domain: str, folder: Path, scopes: Sequence[str] = ()) -> None:
        self.name = trust_domain
        self._folder, self._scopes = folder, frozenset(scopes)
        self._keys = _read_keys(folder)
        self._looked = _version(folder)

    def key(self, kid: str) -> bytes:
        try:
            return self._keys[kid or _POOL]
        except KeyError:
            raise CredentialRefused("an IDTOKEN that was signed with a key that is not here") from None

    def subject(self, claims: Mapping[str, Any]) -> str:
        scope = claims.get("scope", "")
        limits = frozenset(scope.split()) if isinstance(scope, str) else frozenset("?")
        if limits and self._scopes and not limits & self._scopes:
            raise CredentialRefused("an IDTOKEN that is not for pilots: it has none of the scopes that are asked for")
        return str(claims["sub"])

    def refresh(self) -> None:
        version = _version(self._folder)
        if version != self._looked:
            self._keys, self._looked = _read_keys(self._folder), version


def signing_key(password: bytes, *, pool: bool) -> bytes:
    """Returns the HS256 key that HTCondor derives from the content of a key file; `pool` for the file called POOL."""
    shared = bytes(a ^ b for a, b in zip(password, cycle(_SCRAMBLE)))
    return HKDF(algorithm=SHA256(), length=32, salt=b"htcondor", info=b"master jwt").derive(shared * (2 if pool else 1))


def _read_keys(folder: Path) -> dict[str, bytes]:
    keys = {}
    for path in _files(folder):
        try:
            check_private(path)
        except OSError as error:
            raise _unusable(path, error) from error
        password = read_bytes(path)
        if not password:
            raise GatewayFolderError(f"the signing key {path} is empty", "copy it from the pool again")
        keys[path.name] = signing_key(password, pool=path.name == _POOL)
    if not keys:
        raise GatewayFolderError(f"there is no signing key in {folder}", "copy one from SEC_PASSWORD_DIRECTORY")
    return keys


def _version(folder: Path) -> list[object]:
    return [(path.name, version_of(path)) for path in _files(folder)]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(path: Path, error: OSError) -> GatewayFolderError:
    remedy = "HTCONDOR_VPN_GATEWAY_IDTOKEN_KEYS must name a folder of keys that we own"
    return GatewayFolderError(f"{path} cannot be read: {error.strerror}", remedy)
