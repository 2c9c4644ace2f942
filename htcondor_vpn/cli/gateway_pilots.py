"""`htcondor-vpn gateway ocserv` and `gateway wireguard`: who may use a gateway for packets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from htcondor_vpn.cli.output import date, print_secret, print_table, say
from htcondor_vpn.settings import Settings

if TYPE_CHECKING:
    from htcondor_vpn.gateway.wireguard_pilots import WireguardPilots


class _Store(Protocol):
    """Those who may use a gateway. Methods raise `VpnError`."""

    def add(self, name: str) -> str:
        """Makes one, and returns the text of the file that it needs, which cannot be had again."""

    def revoke(self, name: str) -> None:
        """Ends one."""

    def table(self) -> list[tuple[str, ...]]:
        """All of them, below a row of headers."""


class _OcservStore:
    def __init__(self, settings: Settings) -> None:
        from htcondor_vpn.gateway.ocserv_users import OcservUsers

        self._users = OcservUsers(settings.gateway_dir)

    def add(self, name: str) -> str:
        return f"{name}:{self._users.add(name)}\n"

    def revoke(self, name: str) -> None:
        self._users.revoke(name)

    def table(self) -> list[tuple[str, ...]]:
        return [("NAME",), *((name,) for name in self._users.list())]


class _WireguardStore:
    def __init__(self, settings: Settings, pilots: WireguardPilots) -> None:
        self._settings, self._pilots = settings, pilots

    def add(self, name: str) -> str:
        from htcondor_vpn.gateway.operation.listening import name_of
        from htcondor_vpn.gateway.wireguard_pilots import client_file, public_key, server_key
        from htcondor_vpn.packet_gateway.wireguard import endpoint

        own_key = public_key(server_key(self._settings.gateway_dir))
        pilot, private_key = self._pilots.add(name)
        return client_file(pilot, private_key, own_key, name_of(endpoint(self._settings)))

    def revoke(self, name: str) -> None:
        self._pilots.revoke(name)

    def table(self) -> list[tuple[str, ...]]:
        rows = [(pilot.name, date(pilot.created), *map(str, pilot.addresses)) for pilot in self._pilots.list()]
        return [("NAME", "MADE", "IPV4", "IPV6"), *rows]


@contextmanager
def _ocserv(settings: Settings) -> Iterator[_Store]:
    yield _OcservStore(settings)


@contextmanager
def _wireguard(settings: Settings) -> Iterator[_Store]:
    from htcondor_vpn.gateway.trust.folder import open_folder
    from htcondor_vpn.gateway.wireguard_pilots import WireguardPilots

    with WireguardPilots(open_folder(settings.gateway_dir)) as pilots:
        yield _WireguardStore(settings, pilots)


@dataclass(frozen=True)
class _Kind:
    """A kind of gateway: who uses it, what one gets, what is said when that was written, and help about the verbs."""

    name: str
    whose: str
    secret: str
    written: str
    add: str
    revoke: str
    listing: str
    store: Callable[[Settings], AbstractContextManager[_Store]]


_KINDS = (
    _Kind(
        "ocserv", "the users of an ocserv gateway", "the password", "name and password of {name} are in {file}",
        "print USER:PASSWORD for a new user; the password cannot be seen again",
        "remove a user, who is thrown out within seconds", "list the users", _ocserv,
    ),
    _Kind(
        "wireguard", "the pilots of a WireGuard gateway", "the configuration",
        "the configuration of {name} is in {file}",
        "print a pilot's configuration file, with a new key; it cannot be seen again",
        "end a pilot's key; its packets are taken no more within seconds",
        "list the pilots, and their addresses in the tunnel", _wireguard,
    ),
)  # fmt: skip


def add_verbs(
    nouns: argparse._SubParsersAction[argparse.ArgumentParser],
    add_common: Callable[[argparse.ArgumentParser, object], None],
) -> None:
    """Adds `add`, `revoke` and `list` for each kind; `add_common` adds the options that all verbs of a gateway have."""
    for kind in _KINDS:
        verbs = nouns.add_parser(kind.name, help=f"manage {kind.whose}").add_subparsers(metavar="VERB", required=True)
        add = verbs.add_parser("add", help=kind.add)
        add.add_argument("-o", "--output", metavar="FILE", type=Path, help="write it to FILE (mode 0600) instead")
        add.set_defaults(act=_add)
        revoke = verbs.add_parser("revoke", help=kind.revoke)
        revoke.set_defaults(act=_revoke)
        for verb in (add, revoke):
            verb.add_argument("pilot_name", metavar="NAME")
        listing = verbs.add_parser("list", help=kind.listing)
        listing.set_defaults(act=_list)
        for verb in (add, revoke, listing):
            add_common(verb, argparse.SUPPRESS)
            verb.set_defaults(kind_of_pilots=kind)


def _add(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.trust.folder import write_new

    kind: _Kind = args.kind_of_pilots
    with kind.store(settings) as store:
        text = store.add(args.pilot_name)
        try:
            if args.output is None:
                print_secret(text, kind.secret)
            else:
                write_new(args.output, text.encode(), 0o600)
        except BaseException:
            store.revoke(args.pilot_name)
            raise
    if args.output is not None:
        say(kind.written.format(name=args.pilot_name, file=args.output))
    return 0


def _revoke(args: argparse.Namespace, settings: Settings) -> int:
    from htcondor_vpn.gateway.trust.folder import open_folder
    from htcondor_vpn.gateway.trust.reserve import spend

    kind: _Kind = args.kind_of_pilots

    def end() -> None:
        with kind.store(settings) as store:
            store.revoke(args.pilot_name)

    spend(open_folder(settings.gateway_dir), end, f"{args.pilot_name} is not revoked")
    return 0


def _list(args: argparse.Namespace, settings: Settings) -> int:
    kind: _Kind = args.kind_of_pilots
    with kind.store(settings) as store:
        print_table(store.table())
    return 0
