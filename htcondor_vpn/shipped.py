"""Folders that come beside the package, with what an admin or a factory operator drops in."""

from __future__ import annotations

import sys
from pathlib import Path

from htcondor_vpn.errors import ConfigUnreadable

CONDOR_CONFIG = "condor_config.d"
GLIDEIN_SCRIPTS = "glidein_scripts"


def shipped(name: str) -> Path:
    """Returns the folder: of the checkout or bundle that this runs from, or of the installation.

    Raises `ConfigUnreadable` where there is none.
    """
    installed = Path(sys.prefix, "share/htcondor-vpn", name)
    for folder in (Path(__file__).resolve().parents[1] / name, installed):
        if folder.is_dir():
            return folder
    raise ConfigUnreadable(f"there is no folder {installed}", "install htcondor-vpn again, whole")
