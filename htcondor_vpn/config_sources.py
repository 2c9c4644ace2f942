"""Which configuration files count: those that were given, or HTCONDOR_VPN_CONFIG's, or the chain that HTCondor reads.

The chain is the one of HTCondor's manual ("Ordered Evaluation to Set the Configuration"): CONDOR_CONFIG or the first of
the usual places, then the files of LOCAL_CONFIG_DIR in lexical order, then LOCAL_CONFIG_FILE, then the user's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from htcondor_vpn.config_file import Macros
from htcondor_vpn.errors import ConfigError, ConfigUnreadable

#: The environment variable with our own files, separated by colons; HTCondor's are not read then.
VARIABLE = "HTCONDOR_VPN_CONFIG"

_USUAL_PLACES = ("/etc/condor/condor_config", "/usr/local/etc/condor_config", "~condor/condor_config")
#: HTCondor's default for LOCAL_CONFIG_DIR_EXCLUDE_REGEXP: hidden files, and what editors and packagers leave.
_LEFTOVERS = re.compile(r"(\..*)|(.*~)|(#.*)|(.*\.rpmsave)|(.*\.rpmnew)|(.*\.dpkg-[a-z]+)")


class Sources(NamedTuple):
    """The files in the order in which they count, and what was passed over."""

    files: list[Path]
    warnings: list[str]


def config_files(given: Sequence[Path], environ: Mapping[str, str]) -> Sources:
    """Returns the files to read: `given` if there are any, else what the environment says.

    Raises `ConfigUnreadable` if HTCondor's own files have to be read to find the others, and cannot be.
    """
    if given:
        return Sources(list(given), [])
    if environ.get(VARIABLE):
        return Sources([Path(name) for name in environ[VARIABLE].split(os.pathsep) if name], [])
    return _chain(environ)


def _chain(environ: Mapping[str, str]) -> Sources:
    files: list[Path] = []
    warnings: list[str] = []
    first = _first_file(environ.get("CONDOR_CONFIG"), warnings)
    if first is None:
        return Sources(files, warnings)
    macros = Macros(environ)
    read = _Reader(macros, files)
    read(first)
    # What a file there sets may change either list, for the files that follow.
    for directory in _listed(macros, "LOCAL_CONFIG_DIR", warnings):
        for path in _files_of(directory, warnings):
            read(path)
    for path in _listed(macros, "LOCAL_CONFIG_FILE", warnings):
        if path.exists():
            read(path)
        else:
            warnings.append(f"{path}, one of LOCAL_CONFIG_FILE, does not exist")
    user = _expanded(f"{environ.get('HOME') or '~'}/.condor/user_config")
    if user is not None and user.exists():
        read(user)
    return Sources(files, warnings)


class _Reader:
    """Reads a file into `macros` and notes it in `files`."""

    def __init__(self, macros: Macros, files: list[Path]) -> None:
        self._macros = macros
        self._files = files

    def __call__(self, path: Path) -> None:
        self._macros.read(path)
        self._files.append(path)


def _first_file(condor_config: str | None, warnings: list[str]) -> Path | None:
    if condor_config == "ONLY_ENV":
        return None
    if condor_config and condor_config.rstrip().endswith("|"):
        warnings.append("CONDOR_CONFIG is a command: only HTCondor runs it")
        return None
    if condor_config:
        return Path(condor_config)
    for place in _USUAL_PLACES:
        path = _expanded(place)
        if path is not None and os.access(path, os.R_OK):
            return path
    return None


def _expanded(path: str) -> Path | None:
    """Replaces a `~` at the beginning; returns None if there is no such user, or no home folder of ours."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


def _listed(macros: Macros, name: str, warnings: list[str]) -> Iterator[Path]:
    if name not in macros.table:
        return
    try:
        value = macros.value(name)
    except ConfigError as error:
        warnings.append(f"{error}: its files are passed over")
        return
    if value.endswith("|"):
        warnings.append(f"{macros.table[name].origin}: {name} is a command: only HTCondor runs it")
        return
    for word in re.split(r"[,\s]+", value):
        if word:
            yield Path(word)


def _files_of(directory: Path, warnings: list[str]) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_file() and not _LEFTOVERS.fullmatch(path.name))
    except FileNotFoundError:
        warnings.append(f"{directory}, one of LOCAL_CONFIG_DIR, does not exist")
        return []
    except OSError as error:
        raise ConfigUnreadable(
            f"{directory} cannot be read: {error.strerror}", f"check its permissions, or set {VARIABLE}"
        ) from error
