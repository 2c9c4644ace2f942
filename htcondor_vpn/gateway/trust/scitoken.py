"""SciTokens (and WLCG's profile): JSON Web Tokens that an issuer on the web signs, for whom its public keys vouch.

The keys are a JSON Web Key Set (RFC 7517), from a file, or from the address in the issuer's metadata, which are looked
for where OpenID Connect Discovery and RFC 8414 put them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from htcondor_vpn.gateway.trust.identity import CredentialRefused

#: What a token says that may be used anywhere, in the words of SciTokens and of WLCG's token profile.
ANY_AUDIENCE = ("ANY", "https://wlcg.cern.ch/jwt/v1/any")


class KeySet(Protocol):
    """The public keys of an issuer, by their names."""

    def key(self, kid: str) -> Any:
        """Returns a key; raises `CredentialRefused` if there is none, `VpnError` if that cannot be told now."""

    def refresh(self) -> None:
        """Looks whether there are new ones."""


class SciTokenIssuer:
    """The `Issuer` of the tokens of `url`.

    They have to be meant for one of `audiences`, and to have one of `scopes`, such as `compute.create` (or
    `compute.create:/PATH`), if there are any.
    """

    kind = "scitoken"
    algorithms: Sequence[str] = ("RS256", "ES256")
    required_claims: Sequence[str] = ("sub", "exp", "aud")

    def __init__(self, url: str, keys: KeySet, audiences: Sequence[str], scopes: Sequence[str] = ()) -> None:
        self.name = url
        self.audiences: Sequence[str] | None = [*audiences, *ANY_AUDIENCE]
        self._keys, self._scopes = keys, frozenset(scopes)

    def key(self, kid: str) -> Any:
        return self._keys.key(kid)

    def subject(self, claims: Mapping[str, Any]) -> str:
        scope = claims.get("scope", "")
        granted = scope.split() if isinstance(scope, str) else []
        acts = {*granted, *(grant.partition(":")[0] for grant in granted)}
        if self._scopes and not acts & self._scopes:
            raise CredentialRefused("a SciToken with none of the scopes that are asked for")
        return f"{claims['sub']}@{self.name.partition('://')[2]}"

    def refresh(self) -> None:
        self._keys.refresh()
