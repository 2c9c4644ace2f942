"""Commands for somebody on the site: one for each host, which runs there what it is given, and our own."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from htcondor_vpn.testbed.site import Site


def write_commands(site: Site) -> Path:
    """Writes `node`, `dmz`, `world` and `htcondor-vpn`; returns their folder, which is to be put on PATH.

    The first three run their words on that host as its ordinary user, or a shell if there are none.
    """
    folder = site.folder / "bin"
    folder.mkdir()
    for host in (site.node, site.dmz, site.world):
        write_command(folder / host.name, f"[ $# -gt 0 ] || set -- bash\n{host.launcher()}")
    own = shlex.join([sys.executable, "-m", "htcondor_vpn.cli.main"])
    write_command(folder / "htcondor-vpn", f'exec {own} "$@"')
    return folder


def write_command(path: Path, script: str) -> None:
    """Makes an executable file of some lines of shell."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
