"""Stands in for GlideinWMS on a node: what it promises to custom scripts and HTCondor, from its documentation.

`glidein_startup.sh STAGE` takes the lists `main` and `entry` of its stage folder, and runs what has to be run,
one by one, in the work folder, as `SCRIPT glidein_config main|entry`. It ends at the first that fails. The last script,
`condor_startup.sh`, starts condor_master and passes signals on as SIGQUIT. The functions and formats are those that
scripts see: glidein_config, condor_vars.lst, gconfig_get, gconfig_add, add_condor_vars_line, error_gen.sh,
description.cfg, the list of job wrappers, and periodic scripts.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "glidein_scripts"
CONDOR_CONFIG = HERE.parents[1] / "condor_config.d/50-htcondor-vpn.conf"


class Stage:
    """A factory's stage area, and the folder where a batch system starts a glidein of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.start_folder = folder / "stage", folder / "start"
        for made in (self.folder, self.start_folder):
            made.mkdir()
        for name in ("main", "entry", "attributes"):
            (self.folder / name).touch()
        for name in ("add_config_line.source", "error_gen.sh", "condor_startup.sh", "script_wrapper.sh"):
            self.add("main", HERE / name, "regular")

    def add(self, where: str, source: Path, kind: str, *, period: int = 0, prefix: str = "GLIDEIN_PS_") -> None:
        """Lists a file as a factory's `<file>` does: `kind` is regular, exec or wrapper; modes do not travel."""
        shutil.copyfile(source, self.folder / source.name)
        with (self.folder / where).open("a") as file:
            file.write(f"{source.name} {kind} {period} {prefix}\n")

    def add_module(self, where: str = "entry", *files: Path) -> None:
        """Lists what an entry with the in-glidein module lists, `files` (bundle and configuration) first."""
        for file in (*files, CONDOR_CONFIG):
            self.add(where, file, "regular")
        self.add(where, SCRIPTS / "htvpn-setup", "exec")
        self.add(where, SCRIPTS / "htvpn-status", "exec", period=5, prefix="GLIDEIN_VPN_")

    def attribute(self, name: str, value: object) -> None:
        """Sets an attribute of the entry."""
        with (self.folder / "attributes").open("a") as file:
            file.write(f"{name} {value}\n")

    @property
    def argv(self) -> list[str]:
        """What the batch system runs, in `start_folder`."""
        return ["bash", str(HERE / "glidein_startup.sh"), str(self.folder)]


def failure_type(said: str) -> str | None:
    """What kind of failure the last script that failed has reported by error_gen, as the glidein's output has it."""
    found = re.findall(r'<metric name="failure"[^>]*>(\w+)</metric>', said)
    return found[-1] if found else None
