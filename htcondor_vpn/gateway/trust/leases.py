"""Until when each pilot may be served: the latest expiry of the credentials that it has shown to this gateway.

A pilot's flows may end up in other processes than the one that sees its renewed token first, so they share the table.
While it cannot be written (a full disk, another's lock) pilots are served all the same, as far as each process knows.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from htcondor_vpn.errors import GatewayFolderError
from htcondor_vpn.gateway.trust.database import Database
from htcondor_vpn.gateway.trust.identity import Identity

_SCHEMA = "CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, expires REAL NOT NULL) WITHOUT ROWID"

#: Many pilots may share a name, each with a token of its own: what others learn may be this much late, seconds.
_COARSE_SECONDS = 60.0


#: The flows of all pilots wait meanwhile.
_BUSY_SECONDS = 0.2

log = logging.getLogger(__name__)


class Leases:
    """The leases in `folder`; one object belongs to one thread. Making it and `refresh` raise `GatewayFolderError`."""

    def __init__(self, folder: Path) -> None:
        self._own: dict[str, float] = {}
        self._shared: dict[str, float] = {}
        self._untold: dict[str, float] = {}  # what could not be written
        self._problem = ""
        self._database = Database(folder, _SCHEMA, _BUSY_SECONDS)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def extend(self, identity: Identity) -> None:
        """Notes a credential that has just been found good."""
        name, expires = identity.name, identity.expires
        if expires <= self.until(name):
            return
        self._own[name] = expires
        if expires > self._shared.get(name, 0.0) + _COARSE_SECONDS:
            self._untold[name] = expires
            self._tell()

    def _tell(self) -> None:
        """Writes what others do not know yet, or tries to."""
        insert = "INSERT INTO leases VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET expires = max(expires, ?)"
        inserts = [(insert, (name, expires, expires)) for name, expires in self._untold.items()]
        try:
            self._database.write(("DELETE FROM leases WHERE expires <= ?", (time.time(),)), *inserts)
        except GatewayFolderError as error:
            if str(error) != self._problem:
                log.error("the gateway's other processes do not learn of renewed credentials: %s", error)
            self._problem = str(error)
        else:
            self._untold, self._problem = {}, ""

    def until(self, name: str) -> float:
        """Returns when the last known lease of `name` ends, in Unix seconds; 0 if there is none."""
        return max(self._own.get(name, 0.0), self._shared.get(name, 0.0))

    def refresh(self) -> None:
        """Reads the others' entries again if they were changed, and forgets what is over."""
        if self._untold:
            self._tell()
        if self._database.changed():
            now = time.time()
            self._shared = dict(self._database.rows("SELECT name, expires FROM leases WHERE expires > ?", now))
            self._own = {name: expires for name, expires in self._own.items() if expires > now}
