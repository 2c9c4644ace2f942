"""The pilots' bearer tokens (RFC 6750), in SQLite: the command line writes while the gateway reads.

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

from htcondor_vpn.errors import GatewayFolderError, TokenNameError

FILE = "tokens.db"
_BUSY_SECONDS = 10.0
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
    """The tokens in `folder`; one object belongs to one thread. Every method raises `GatewayFolderError`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._version = -1
        self._known: dict[bytes, Token] = {}
        try:
            self._path.touch(mode=0o600)
            self._database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute(_SCHEMA)
            except BaseException:
                self._database.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from error

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
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute("DELETE FROM tokens WHERE name = ? AND expires <= ?", (name, now))
                self._database.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", (_digest(token), name, now, expires))
        except sqlite3.IntegrityError:
            raise TokenNameError(f"{name} has a token already", "revoke it first, or choose another name") from None
        except sqlite3.Error as error:
            raise self._failure(error) from error
        self._version = -1
        return token

    def revoke(self, name: str) -> None:
        """Ends the token of the pilot `name`; raises `TokenNameError` if it has none."""
        try:
            gone = self._database.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount
        except sqlite3.Error as error:
            raise self._failure(error) from error
        if not gone:
            raise TokenNameError(f"there is no token of the name {name}", "see `htcondor-vpn gateway token list`")
        self._version = -1

    def list(self) -> list[Token]:
        """Returns all tokens by name, the expired ones too."""
        self.refresh()
        return sorted(self._known.values(), key=lambda token: token.name)

    def verify(self, token: str) -> Token | None:
        """Returns what is kept of `token` if it is good now, else None."""
        self.refresh()
        return self.current(_digest(token))

    def current(self, digest: bytes) -> Token | None:
        """Returns the token of this digest if it is good according to the last `refresh`, else None."""
        found = self._known.get(digest)
        return None if found is None or found.expired else found

    def refresh(self) -> None:
        """Reads the tokens again if they were changed, by another process too; else it costs a few microseconds."""
        try:
            (version,) = self._database.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                rows = self._database.execute("SELECT digest, name, created, expires FROM tokens")
                self._known = {row[0]: Token(*row) for row in rows}
                self._version = version
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> GatewayFolderError:
        return GatewayFolderError(f"{self._path} cannot be used: {error}", "check the folder's owner and the disk")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
