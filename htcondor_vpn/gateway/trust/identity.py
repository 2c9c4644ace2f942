"""Who stands behind a session: what a peer presents, and what the gateway makes of it.

Each kind of credential has an authenticator of its own behind one small protocol. Limits, the log and the deny list
only see the identity, so that they are the same for all kinds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

_MAX_NAME_CHARACTERS = 256


@dataclass(frozen=True)
class Presented:
    """What came with a request: a bearer token (RFC 6750), and the client certificate (DER) that TLS has verified."""

    bearer: str | None = None
    certificate: bytes | None = None


@dataclass(frozen=True)
class Identity:
    """A pilot as it is known by one credential.

    `name` is unique among all kinds of credentials, and printable without spaces. `credential` tells apart the
    credentials of one name (their SHA-256). `expires` is in Unix seconds; math.inf is never. `marks` are the words by
    which the deny list may name it, beside its name.
    """

    kind: str
    name: str
    credential: bytes
    expires: float = math.inf
    marks: frozenset[str] = frozenset()


class CredentialRefused(Exception):
    """A credential that is not good. Its text says why, for the gateway's log; it never holds the credential."""


class Authenticator(Protocol):
    """Knows one kind of credential."""

    def identify(self, presented: Presented) -> Identity | None:
        """Returns whose the credential is, or None where nothing of this kind was presented.

        Raises `CredentialRefused` for one that is not good, and `VpnError` where it cannot be told at present.
        """

    def revoked(self, identity: Identity) -> bool:
        """Tells whether an identity of this kind ended before its time, according to the last `refresh`."""

    def refresh(self) -> None:
        """Looks, at next to no cost, whether what it judges by was changed, by another process too.

        Raises `VpnError`.
        """


def written(text: str) -> str:
    """Returns `text` as it can stand in a name or a mark: what would spoil a line of the log is percent-encoded.

    Raises `CredentialRefused` for an empty or an endless one.
    """
    name = quote(text, safe="@:/._-+=,~", errors="surrogatepass")  # JSON may hold half a character
    if not 0 < len(name) <= _MAX_NAME_CHARACTERS:
        raise CredentialRefused(f"its name has {len(name)} characters")
    return name


def is_name(text: str) -> bool:
    """Tells whether `text` can be a name or a mark at all."""
    return re.fullmatch(rf"[!-~]{{1,{_MAX_NAME_CHARACTERS + 32}}}", text) is not None
