"""Stands in for GlideinWMS on a node: what it promises to custom scripts and HTCondor, from its documentation.

`glidein_startup.sh` takes the arguments of the real one, of which `-web`, `-proxy` and `-dir` count: it downloads the
lists `main` and `entry` of the stage area and what they name, and runs what has to be run, one by one, in the work
folder, as `SCRIPT glidein_config main|entry`. It ends at the first that fails. The last script, `condor_startup.sh`,
starts condor_master and passes signals on as SIGQUIT. The functions and formats are those that scripts see:
glidein_config, condor_vars.lst, gconfig_get, gconfig_add, add_condor_vars_line, error_gen.sh, description.cfg, the list
of job wrappers, and periodic scripts. Credentials for the pool are the files `credential_*.idtoken` where it starts.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from htcondor_vpn.testbed.host import Host
from htcondor_vpn.testbed.logs import wait_for_log

HERE = Path(__file__).parent
STARTUP = HERE / "glidein_startup.sh"
SCRIPTS = HERE.parents[1] / "glidein_scripts"
CONDOR_CONFIG = HERE.parents[1] / "condor_config.d/50-htcondor-vpn.conf"
_WEB_PORT = 8088


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

    def add_condor(self, release: Path, config: str) -> None:
        """Has the glidein run the HTCondor of the folder `release`, with this configuration."""
        self.attribute("CONDOR_DIR", release)
        (self.folder / "condor_config").write_text(config)
        with (self.folder / "main").open("a") as file:
            file.write("condor_config regular 0 -\n")

    def attribute(self, name: str, value: object) -> None:
        """Sets an attribute of the entry."""
        with (self.folder / "attributes").open("a") as file:
            file.write(f"{name} {value}\n")

    def arguments(self, url: str, *more: str) -> list[str]:
        """What glidein_startup.sh is told, with the stage area at `url`."""
        return [
            *("-v", "fast", "-factory", "TEST", "-name", "instance", "-entry", "TEST", "-clientname", "FE.main"),
            *("-web", url, "-descript", "description.cfg", "-descriptentry", "description.cfg"),
            *("-sign", "none", "-signentry", "none", "-dir", ".", *more),
        ]

    @property
    def argv(self) -> list[str]:
        """What the batch system runs, in `start_folder`; the stage area is on a file system that the node sees."""
        return ["bash", str(STARTUP), *self.arguments(self.folder.as_uri())]


@contextmanager
def served(host: Host, folder: Path, address: str) -> Iterator[str]:
    """Within, a stage area is on the web, at the URL that it returns."""
    log = folder.with_name("web.log")
    log.touch()
    where = ["--bind", address, "--directory", str(folder), str(_WEB_PORT)]
    server = host.start([sys.executable, "-u", "-m", "http.server", *where], log=log)
    try:
        wait_for_log(log, b"^Serving", server)
        yield f"http://{address}:{_WEB_PORT}"
    finally:
        server.kill()
        server.wait()


def failure_type(said: str) -> str | None:
    """What kind of failure the last script that failed has reported by error_gen, as the glidein's output has it."""
    found = re.findall(r'<metric name="failure"[^>]*>(\w+)</metric>', said)
    return found[-1] if found else None
