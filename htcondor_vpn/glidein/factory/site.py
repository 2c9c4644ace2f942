"""A site as its factory's operator describes it: a file in HTCondor's syntax, one name and value a line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from htcondor_vpn.config_file import Macros
from htcondor_vpn.errors import ConfigError

#: The names of a site file, with their defaults; None: it has to be there. The page for operators explains them.
NAMES: Mapping[str, str | None] = {
    "ENTRY": None,
    "GATEKEEPER": None,
    "GRIDTYPE": "batch slurm",
    "RSL": "",
    "WORK_DIR": "TMPDIR",
    "AUTH_METHOD": "scitoken",
    "TRUST_DOMAIN": "grid",
    "SITE": None,
    "CPUS": "1",
    "MAX_MEMORY_MB": "2500",
    "MAX_WALLTIME_SECONDS": "172800",
    "WAY": "wrap",
    "FOLDER": None,
    "BUNDLE": "htcondor-vpn.bundle",
    "LAUNCHER": "htvpn-launch",
    "KNOBS": "htcondor-vpn.conf",
    "TOKEN": "pilot.token",
    "PROXY_URL": "",
}

_ENTRY = re.compile(r"[A-Za-z0-9_.-]+")


class Way(Enum):
    """How a glidein there gets its network."""

    WRAP = "wrap"  # the whole glidein runs in the tunnel
    MODULE = "module"  # it downloads by the site's web proxy, and a script of its own brings up the tunnel


@dataclass(frozen=True)
class FactorySite:
    """The site; `files` are whole paths on the factory's host, by the names of the site file."""

    values: Mapping[str, str]
    way: Way
    files: Mapping[str, str]

    @property
    def entry(self) -> str:
        return self.values["ENTRY"]


def read_site(path: Path) -> FactorySite:
    """Reads a site file; raises `ConfigUnreadable`, and `ConfigError` with file and line."""
    macros = Macros()
    macros.read(path)
    for name, assignment in macros.table.items():
        if name not in NAMES:
            raise ConfigError(f"{assignment.origin}: there is no {name}", f"a site file has {', '.join(NAMES)}")
    values = {}
    for name, default in NAMES.items():
        text = macros.value(name).strip() if name in macros.table else default
        if not text and default is None:
            raise ConfigError(f"{path} has no {name}", f"write {name} = …")
        values[name] = text or ""

    def wrong(name: str, says: str) -> ConfigError:
        assignment = macros.table.get(name)
        return ConfigError(f"{assignment.origin if assignment else path}: {name} = {values[name]}", says)

    if not _ENTRY.fullmatch(values["ENTRY"]):
        raise wrong("ENTRY", "a name of letters, digits, _ . and -")
    for name in ("CPUS", "MAX_MEMORY_MB", "MAX_WALLTIME_SECONDS"):
        if not values[name].isdigit() or int(values[name]) == 0:
            raise wrong(name, "a whole number greater than 0")
    if not values["FOLDER"].startswith("/"):
        raise wrong("FOLDER", "a whole path on the factory's host")
    if values["WAY"] not in [way.value for way in Way]:
        raise wrong("WAY", "wrap, or module where the nodes reach a web proxy")
    way = Way(values["WAY"])
    if way is Way.MODULE and not values["PROXY_URL"]:
        raise wrong("PROXY_URL", "the web proxy by which the glidein downloads, as http://proxy.example.org:3128")
    folder = values["FOLDER"].rstrip("/")
    files = {name: f"{folder}/{values[name]}" for name in ("BUNDLE", "LAUNCHER", "KNOBS", "TOKEN") if values[name]}
    return FactorySite(values, way, files)
