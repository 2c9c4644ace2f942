"""The pilots' bearer tokens (RFC 6750) that this gateway makes itself.

Only a token's SHA-256 is kept. A token is 32 random bytes, so that neither a salt nor a slow hash would add anything.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from htcondor_vpn.errors import TokenNameError
from htcondor_vpn.gateway.trust.database import Database
from htcondor_vpn.gateway.trust.identity import CredentialRefused, Identity, Presented

KIND = "token"
_SCHEMA = """CREATE TABLE IF NOT EXISTS tokens (
    digest BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL, expires REAL NOT NULL
) WITHOUT ROWID"""


@dataclass(frozen=True)
class Token:
    """A token as it is kept: the pilot's name, and when it was made and ends (Unix seconds; math.inf is never)."""

    digest: bytes
    name: str
    created: float
    expires: float

    @property
    def expired(self) -> bool:
        return self.expires <= time.time()


class TokenStore:
    """The tokens in `folder`, and the `Authenticator` of them; one object belongs to one thread.

    Every method raises `GatewayFolderError`.
    """

    def __init__(self, folder: Path) -> None:
        self._known: dict[bytes, Token] = {}
        self._database = Database(folder, _SCHEMA)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, lifetime_seconds: float | None = None) -> str:
        """Makes a token for the pilot `name` and returns it: the only time that it can be seen.

        Raises `TokenNameError` if the name has a token that is still good, or consists of other characters than
        letters, digits and `._@-`.
        """
        if not re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", name):
            raise TokenNameError(f"{name!r} cannot name a token", "use 1 to 64 letters, digits, dots, @, _ and -")
        token, now = secrets.token_urlsafe(32), time.time()
        expires = math.inf if lifetime_seconds is None else now + lifetime_seconds
        try:
            self._database.write(
                ("DELETE FROM tokens WHERE name = ? AND expires <= ?", (name, now)),
                ("INSERT INTO tokens VALUES (?, ?, ?, ?)", (_digest(token), name, now, expires)),
            )
        except sqlite3.IntegrityError:
            raise TokenNameError(f"{name} has a token already", "revoke it first, or choose another name") from None
        return token

    def revoke(self, name: str) -> None:
        """Ends the token of the pilot `name`; raises `TokenNameError` if it has none."""
        if not self._database.write(("DELETE FROM tokens WHERE name = ?", (name,))):
            raise TokenNameError(f"there is no token of the name {name}", "see `htcondor-vpn gateway token list`")

    def list(self) -> list[Token]:
        """Returns all tokens by name, the expired ones too."""
        self.refresh()
        return sorted(self._known.values(), key=lambda token: token.name)

    def verify(self, token: str) -> Token | None:
        """Returns what is kept of `token` if it is good now, else None."""
        self.refresh()
        found = self._known.get(_digest(token))
        return None if found is None or found.expired else found

    def identify(self, presented: Presented) -> Identity | None:
        if presented.bearer is None or "." in presented.bearer:  # a JSON Web Token
            return None
        token = self.verify(presented.bearer)
        if token is None:
            raise CredentialRefused("not a good token")
        return Identity(KIND, token.name, token.digest, token.expires)

    def revoked(self, identity: Identity) -> bool:
        return identity.kind == KIND and identity.credential not in self._known

    def refresh(self) -> None:
        """Reads the tokens again if they were changed, by another process too; else it costs a few microseconds."""
        if self._database.changed():
            rows = self._database.rows("SELECT digest, name, created, expires FROM tokens")
            self._known = {row[0]: Token(*row) for row in rows}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
