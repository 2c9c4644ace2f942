"""The gateway's deny list: credentials that others have issued and that are not to be accepted here any more.

An entry is the name of an identity, or one of its marks: `jti:ID` of a token, `serial:HEX` of a certificate, … (the
authenticators say which they give).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from htcondor_vpn.errors import TokenNameError
from htcondor_vpn.gateway.trust.database import Database
from htcondor_vpn.gateway.trust.identity import Identity, is_name

_SCHEMA = "CREATE TABLE IF NOT EXISTS denied (name TEXT PRIMARY KEY, created REAL NOT NULL) WITHOUT ROWID"


@dataclass(frozen=True)
class Denial:
    """One entry, and when it was made (Unix seconds)."""

    name: str
    created: float


class DenyList:
    """The entries in `folder`; one object belongs to one thread. Every method raises `GatewayFolderError`."""

    def __init__(self, folder: Path) -> None:
        self._denied: frozenset[str] = frozenset()
        self._database = Database(folder, _SCHEMA)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> DenyList:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str) -> None:
        """Denies `name` from now on; again is no error. Raises `TokenNameError` for what can name nobody."""
        if not is_name(name):
            raise TokenNameError(f"{name!r} names no pilot", "give one as it stands in the log, or jti:… or serial:…")
        self._database.write(("INSERT OR IGNORE INTO denied VALUES (?, ?)", (name, time.time())))

    def remove(self, name: str) -> None:
        """Takes an entry back; raises `TokenNameError` if there is none."""
        if not self._database.write(("DELETE FROM denied WHERE name = ?", (name,))):
            raise TokenNameError(f"{name} is not denied", "see `htcondor-vpn gateway deny list`")

    def list(self) -> list[Denial]:
        """Returns all entries by name."""
        return [Denial(*row) for row in self._database.rows("SELECT name, created FROM denied ORDER BY name")]

    def names(self, identity: Identity) -> bool:
        """Tells whether an entry names this identity, according to the last `refresh`."""
        return identity.name in self._denied or not self._denied.isdisjoint(identity.marks)

    def refresh(self) -> None:
        """Reads the entries again if they were changed, by another process too."""
        if self._database.changed():
            self._denied = frozenset(name for (name,) in self._database.rows("SELECT name FROM denied"))
