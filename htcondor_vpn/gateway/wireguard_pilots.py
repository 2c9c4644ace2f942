"""The pilots of a WireGuard gateway: their keys and addresses, and the files by which they find it.

A pilot's private key is in its file alone: the gateway keeps the public one, and the key that both share (which would
protect what was recorded from a computer that breaks Curve25519).
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from jinja2 import Environment, PackageLoader, StrictUndefined

from htcondor_vpn.addresses import PILOT_V4, PILOT_V6, WIREGUARD_V4, WIREGUARD_V6
from htcondor_vpn.errors import GatewayFolderError, TokenNameError
from htcondor_vpn.gateway.trust.database import Database
from htcondor_vpn.gateway.trust.folder import check_private, locked, read_bytes, write_atomically
from htcondor_vpn.wire.wireguard import KEY_BYTES, Address, Peer, key_text, parse_key

_KEY_FILE = "wireguard.key"
_SCHEMA = """CREATE TABLE IF NOT EXISTS wireguard_pilots (
    name TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, public_key BLOB NOT NULL UNIQUE,
    preshared_key BLOB NOT NULL, created REAL NOT NULL
) WITHOUT ROWID"""
_LAST = WIREGUARD_V4.num_addresses - 2

#: The lowest number that is free.
_INSERT = """INSERT INTO wireguard_pilots
    SELECT ?, min(candidate), ?, ?, ? FROM (
        SELECT 1 AS candidate UNION SELECT number + 1 FROM wireguard_pilots
    ) WHERE candidate NOT IN (SELECT number FROM wireguard_pilots)"""


@dataclass(frozen=True)
class WireguardPilot:
    """A pilot as it is kept; `created` in Unix seconds."""

    name: str
    number: int
    public_key: bytes
    preshared_key: bytes = field(repr=False)
    created: float

    @property
    def addresses(self) -> tuple[Address, Address]:
        """The two that it has, and may send from."""
        return WIREGUARD_V4[self.number], WIREGUARD_V6[self.number]

    def peer(self) -> Peer:
        """What the server has to know of it."""
        return Peer(self.public_key, tuple(map(ip_network, self.addresses)), self.preshared_key)


class WireguardPilots:
    """The pilots in `folder`; one object belongs to one thread. Every method raises `GatewayFolderError`."""

    def __init__(self, folder: Path) -> None:
        self._database = Database(folder, _SCHEMA)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> WireguardPilots:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str) -> tuple[WireguardPilot, bytes]:
        """Makes keys and addresses for the pilot `name`; returns it and its private key, which is not kept.

        Raises `TokenNameError` if there is one of that name, or it cannot be one.
        """
        if not re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", name):
            raise TokenNameError(f"{name!r} cannot name a pilot", "use 1 to 64 letters, digits, dots, @, _ and -")
        private = os.urandom(KEY_BYTES)
        try:
            self._database.write((_INSERT, (name, public_key(private), os.urandom(KEY_BYTES), time.time())))
        except sqlite3.IntegrityError:
            cause = f"there is a pilot {name} already"
            raise TokenNameError(cause, "revoke it first, or choose another name") from None
        made = next(pilot for pilot in self.list() if pilot.name == name)
        if made.number > _LAST:
            self.revoke(name)
            raise TokenNameError(f"there are {_LAST} pilots already", "revoke those that are gone")
        return made, private

    def revoke(self, name: str) -> None:
        """Ends the pilot `name`; raises `TokenNameError` if there is none."""
        if not self._database.write(("DELETE FROM wireguard_pilots WHERE name = ?", (name,))):
            raise TokenNameError(f"there is no pilot {name}", "see `htcondor-vpn gateway wireguard list`")

    def list(self) -> list[WireguardPilot]:
        """Returns all pilots by name."""
        query = "SELECT name, number, public_key, preshared_key, created FROM wireguard_pilots ORDER BY name"
        return [WireguardPilot(*row) for row in self._database.rows(query)]

    def changed(self) -> bool:
        """Whether anything was changed since this was asked last."""
        return self._database.changed()


def public_key(private_key: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def server_key(folder: Path) -> bytes:
    """Returns the gateway's private key, which is made where there is none; raises `GatewayFolderError`."""
    path = folder / _KEY_FILE
    with locked(folder):
        if not path.exists():
            write_atomically(path, f"{key_text(os.urandom(KEY_BYTES))}\n".encode(), 0o600)
        check_private(path)
        try:
            return parse_key(read_bytes(path).decode("ascii", "replace").strip())
        except ValueError as error:
            remedy = "delete it for a new key, and make the pilots' files anew"
            raise GatewayFolderError(f"{path} {error}", remedy) from None


def client_file(pilot: WireguardPilot, private_key: bytes, server_public_key: bytes, endpoint: str) -> str:
    """Returns the file by which a pilot, or wg-quick(8), finds this gateway at `endpoint` (HOST:PORT)."""
    templates = Environment(
        loader=PackageLoader("htcondor_vpn.gateway"), undefined=StrictUndefined, keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (it is no HTML)
    )  # fmt: skip
    return templates.get_template("wireguard-client.conf").render(
        name=pilot.name, endpoint=endpoint, private_key=key_text(private_key), addresses=pilot.addresses,
        name_servers=(PILOT_V4, PILOT_V6), server_key=key_text(server_public_key),
        preshared_key=key_text(pilot.preshared_key),
    )  # fmt: skip
