"""The files by which a glidein uses its tunnel, as a factory has to list them: an entry's own, in this order.

A glidein downloads its files and runs its scripts one at a time, in the order of the lists: the factory's global ones,
the frontend's, the entry's. The set-up has to come behind HTCondor's configuration and everybody else's scripts, and
before the last script, which starts HTCondor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from htcondor_vpn.glidein.factory.site import FactorySite, Way


class EntryFile(NamedTuple):
    """One `<file>`: what it is called in the glidein, and the attributes that it has to have beside its path."""

    name: str
    attributes: Mapping[str, str]


_REGULAR = {"const": "True", "executable": "False"}
_SCRIPT = {"const": "True", "executable": "True"}

BUNDLE = EntryFile("htcondor-vpn.bundle", _REGULAR)
#: The knobs: not constant, so that the glidein finds them by this very name when they change.
KNOBS = EntryFile("htcondor-vpn.conf", {"const": "False", "executable": "False"})
CONDOR_CONFIG = EntryFile("50-htcondor-vpn.conf", _REGULAR)
SETUP = EntryFile("htvpn-setup", _SCRIPT)
STATUS = EntryFile("htvpn-status", {**_SCRIPT, "period": "60", "prefix": "GLIDEIN_VPN_"})


def entry_files(way: Way) -> tuple[EntryFile, ...]:
    """The files in their order. In a glidein that is wrapped, bundle and knobs came with the launcher."""
    used = (CONDOR_CONFIG, SETUP, STATUS)
    return used if way is Way.WRAP else (BUNDLE, KNOBS, *used)


def path_of(file: EntryFile, site: FactorySite) -> str:
    """Where a file lies on the factory's host: all of them in the site's folder."""
    own = {BUNDLE.name: "BUNDLE", KNOBS.name: "KNOBS"}
    if file.name in own:
        return site.files[own[file.name]]
    return f"{site.values['FOLDER'].rstrip('/')}/{file.name}"
