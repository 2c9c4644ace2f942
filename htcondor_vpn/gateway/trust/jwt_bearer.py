"""Bearer tokens that others have signed: JSON Web Tokens (RFC 7519), checked as their issuer's kind wants it.

The issuer that a token names, before anything of it can be believed, decides which keys and which algorithms may have
signed it: so no token can choose how it is verified (RFC 8725, 3.1).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jwt

from htcondor_vpn.gateway.trust.identity import CredentialRefused, Identity, Presented, written

#: How far the issuer's clock and ours may be apart, seconds.
LEEWAY_SECONDS = 60.0

#: Every flow shows its pilot's token again: a signature that was good is not looked at anew for so long. Expiry and the
#: deny list are, each time.
_VERIFIED_SECONDS = 15.0
_MAX_VERIFIED = 4096


class Issuer(Protocol):
    """Who signs tokens of one kind."""

    kind: str
    #: The claim `iss` of its tokens.
    name: str
    algorithms: Sequence[str]
    #: One of these has to be among the token's audiences; None where the kind knows no audience.
    audiences: Sequence[str] | None
    required_claims: Sequence[str]

    def key(self, kid: str) -> Any:
        """Returns the key of this name, as PyJWT takes it.

        Raises `CredentialRefused` if there is none, `VpnError` if that cannot be told now.
        """

    def subject(self, claims: Mapping[str, Any]) -> str:
        """Returns the pilot's name without the kind; raises `CredentialRefused`, also for a scope that is too narrow.

        What it is given is signed, but any claim may be of any type.
        """

    def refresh(self) -> None:
        """Looks whether the keys were changed."""


class JsonWebTokens:
    """The `Authenticator` of the tokens of `issuers`."""

    def __init__(self, issuers: Sequence[Issuer]) -> None:
        self._issuers = {issuer.name: issuer for issuer in issuers}
        self._verified: dict[bytes, tuple[Identity, float]] = {}  # and until when it need not be verified again

    def identify(self, presented: Presented) -> Identity | None:
        token = presented.bearer
        if token is None or token.count(".") != 2:
            return None
        credential = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        identity, until = self._verified.get(credential, (None, 0.0))
        if identity is None or time.monotonic() >= until:
            identity = self._verify(token, credential)
            if len(self._verified) >= _MAX_VERIFIED:
                self._verified.clear()
            self._verified[credential] = identity, time.monotonic() + _VERIFIED_SECONDS
        return identity

    def _verify(self, token: str, credential: bytes) -> Identity:
        issuer, kid = _parsed(lambda: self._addressee(token))
        key = issuer.key(kid)
        claims = _parsed(lambda: _verified(token, key, issuer))
        name = written(issuer.subject(claims))
        told = {"issuer": issuer.name, "kid": kid, "jti": claims.get("jti", "")}
        marks = {f"{word}:{written(value)}" for word, value in told.items() if value}
        expires = float(claims["exp"]) + LEEWAY_SECONDS if "exp" in claims else math.inf
        return Identity(issuer.kind, f"{issuer.kind}:{name}", credential, expires, frozenset(marks))

    def _addressee(self, token: str) -> tuple[Issuer, str]:
        """Returns who should have signed the token, and with which key, as it says itself."""
        unverified = jwt.decode_complete(token, options={"verify_signature": False})
        issuer = unverified["payload"].get("iss")
        if not isinstance(issuer, str) or issuer not in self._issuers:
            raise CredentialRefused("a token of an issuer that is not trusted here")
        kid = unverified["header"].get("kid", "")
        if not isinstance(kid, str):
            raise CredentialRefused("a token whose key has no name")
        return self._issuers[issuer], kid

    def revoked(self, identity: Identity) -> bool:
        return False  # the deny list is for that

    def refresh(self) -> None:
        for issuer in self._issuers.values():
            issuer.refresh()


def _verified(token: str, key: Any, issuer: Issuer) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=list(issuer.algorithms),
        issuer=issuer.name,
        audience=issuer.audiences,
        leeway=LEEWAY_SECONDS,
        options={"require": ["iss", *issuer.required_claims], "verify_aud": issuer.audiences is not None},
    )
    if not math.isfinite(float(claims.get("exp", 0))):
        raise ValueError("exp")
    if "jti" in claims and not isinstance(claims["jti"], str):
        raise ValueError("jti")
    return claims


def _parsed(read: Callable[[], Any]) -> Any:
    """Returns what `read` makes of a token; raises `CredentialRefused` for whatever is wrong with it."""
    try:
        return read()
    except jwt.PyJWTError as error:
        raise CredentialRefused(f"not a good token ({type(error).__name__})") from error
    except (ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise CredentialRefused("not a token at all") from error
