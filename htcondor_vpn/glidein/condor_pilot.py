"""A bare HTCondor pilot, without GlideinWMS: its folder, its configuration, and its end before the batch system's.

The batch system says that time is nearly over by SIGTERM, or nothing does and the pilot knows by itself. Then
condor_master ends gracefully: its startd takes no more jobs, lets those that run go on for as long as they may, and
evicts the rest.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from htcondor_vpn.errors import ConfigUnreadable, RunFolderError
from htcondor_vpn.glidein.release import Release, find_release
from htcondor_vpn.linux.temporary_folders import TemporaryFolder
from htcondor_vpn.pilot.run_folder import PILOT_FOLDERS
from htcondor_vpn.shipped import CONDOR_CONFIG, shipped

#: What batch systems call a job's number.
_JOB_IDS = "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"

#: What is left of the time to end for evicting jobs, telling the pool, and clearing up.
_EVICTION_SECONDS = 60

#: With this condor_master ends where its configuration had it (DAEMON_SHUTDOWN), which is no failure.
_ENDED_BY_ITSELF = 99

_CONFIG = """\
# Made for this pilot, which is gone when it ends.
RELEASE_DIR = {release}
LOCAL_DIR = {folder}
BIN = $(RELEASE_DIR)/bin
SBIN = $(RELEASE_DIR)/sbin
LIB = {lib}
LIBEXEC = {libexec}
LOG = $(LOCAL_DIR)/log
RUN = $(LOCAL_DIR)/run
LOCK = $(LOCAL_DIR)/lock
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
DAEMON_LIST = MASTER STARTD
CONDOR_HOST = {host}
COLLECTOR_HOST = {pool}
use security:recommended_v9_0
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
SEC_TOKEN_DIRECTORY = $(LOCAL_DIR)/tokens.d
SEC_TOKEN_SYSTEM_DIRECTORY = $(LOCAL_DIR)/tokens.d
SEC_PASSWORD_DIRECTORY = $(LOCAL_DIR)/passwords.d
# Whoever holds the match's or the claim's secret comes from the pool, and nobody else can connect.
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
# Nobody can connect to the pilot: who wants to is connected by the collector, which the pilot keeps a connection to.
CCB_ADDRESS = $(COLLECTOR_HOST)
USE_SHARED_PORT = true
SHARED_PORT_PORT = 0
# Every pilot has the same inner address; the names must differ.
MASTER_NAME = {name}@pilots
STARTD_NAME = {name}@pilots
# The node's own name, which nobody has to know in the tunnel: else each daemon looks it up there, for up to a minute.
NETWORK_HOSTNAME = {hostname}
DEFAULT_DOMAIN_NAME = pilots
# By default this is the host's name, and who has the same one would connect to the pilot directly.
PRIVATE_NETWORK_NAME = {name}@pilots
{resources}
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = true
START = true
# When the pilot has to end, its jobs may go on for so long. How long they may take to be evicted comes off that: by
# default it is ten minutes, and nothing was left.
MAXJOBRETIREMENTTIME = {retire}
MachineMaxVacateTime = {vacate}
SHUTDOWN_GRACEFUL_TIMEOUT = {graceful}
MASTER_UPDATE_INTERVAL = 30
{end}
LOCAL_CONFIG_DIR = $(LOCAL_DIR)/config.d
"""


@dataclass(frozen=True)
class Wanted:
    """What a pilot is to be.

    `condor` is HTCondor's folder or tarball, `pool` the collector (HOST or HOST:PORT), `idtoken` the file with the
    token for it. `cpus` and `memory_mb` are what it offers, 0: all that the machine has. It begins to end
    `lead_seconds` before `lifetime_seconds` are over, or when it gets SIGTERM, and then takes at most `lead_seconds`.
    `config` are more configuration files for HTCondor.
    """

    condor: Path
    pool: str
    idtoken: Path
    lead_seconds: int
    lifetime_seconds: int = 0
    name: str = ""
    cpus: int = 0
    memory_mb: int = 0
    config: Sequence[Path] = ()


class PilotFolder:
    """A pilot's folder (0700) below $TMPDIR; `with` it, and it is gone at the end."""

    def __init__(self, wanted: Wanted) -> None:
        """Makes and fills it; raises `RunFolderError`, `ProgramMissing`, `ConfigUnreadable`."""
        self.name = wanted.name or _unique_name(os.environ)
        try:
            self.temporary = TemporaryFolder(PILOT_FOLDERS, Path(tempfile.gettempdir()))
        except OSError as error:
            raise _unwritable(os.environ.get("TMPDIR") or "/tmp", error) from error  # noqa: S108
        self.path = self.temporary.path
        try:
            self._fill(wanted)
        except OSError as error:
            self.remove()
            raise _unwritable(str(self.path), error) from error
        except BaseException:
            self.remove()
            raise

    def _fill(self, wanted: Wanted) -> None:
        for name in ("log", "run", "lock", "spool", "execute", "config.d"):
            (self.path / name).mkdir()
        for name in ("tokens.d", "passwords.d"):
            (self.path / name).mkdir(mode=0o700)
        token = self.path / "tokens.d/pool"
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(wanted.idtoken.read_bytes())
        self.release = find_release(wanted.condor, self.path / "condor")
        (self.path / "condor_config").write_text(_config(wanted, self.path, self.release, self.name))
        ours = shipped(CONDOR_CONFIG) / "50-htcondor-vpn.conf"
        for number, source in enumerate((ours, *wanted.config)):
            try:
                text = source.read_bytes()
            except OSError as error:
                raise ConfigUnreadable(f"{source}: {error.strerror}", "name a file for HTCondor") from error
            (self.path / "config.d" / f"{50 + number:03}-{source.name}").write_bytes(text)

    @property
    def argv(self) -> list[str]:
        """What to run in the tunnel."""
        return [str(self.release.master), "-f"]

    def environment(self, outside: Mapping[str, str]) -> dict[str, str]:
        """The environment to run it in, made from ours."""
        kept = {name: value for name, value in outside.items() if not name.upper().startswith("_CONDOR_")}
        return {
            **kept,
            "CONDOR_CONFIG": str(self.path / "condor_config"),
            "PATH": f"{self.release.path}:{outside.get('PATH', os.defpath)}",
        }

    @staticmethod
    def status(status: int) -> int:
        """The pilot's wait status, from condor_master's."""
        return 0 if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _ENDED_BY_ITSELF else status

    def remove(self) -> None:
        """Removes it. Idempotent."""
        self.temporary.remove()

    def __enter__(self) -> PilotFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _config(wanted: Wanted, folder: Path, release: Release, name: str) -> str:
    resources = [f"NUM_CPUS = {wanted.cpus}"] if wanted.cpus else []
    resources += [f"MEMORY = {wanted.memory_mb}"] if wanted.memory_mb else []
    graceful = max(1, wanted.lead_seconds - _EVICTION_SECONDS // 2)
    end = ""
    if wanted.lifetime_seconds:
        begins = int(time.time()) + max(0, wanted.lifetime_seconds - wanted.lead_seconds)
        end = f"MASTER.DAEMON_SHUTDOWN = time() >= {begins}\nSTART = $(START) && time() < {begins}"
    return _CONFIG.format(
        release=release.folder, lib=release.lib, libexec=release.libexec, folder=folder, name=name,
        host=wanted.pool.rpartition(":")[0] or wanted.pool, pool=wanted.pool, hostname=socket.gethostname(),
        resources="\n".join(resources),
        retire=max(0, wanted.lead_seconds - _EVICTION_SECONDS), vacate=_EVICTION_SECONDS // 2, graceful=graceful,
        end=end,
    )  # fmt: skip


def _unique_name(environment: Mapping[str, str]) -> str:
    job = next((environment[name] for name in _JOB_IDS if environment.get(name)), str(os.getpid()))
    word = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{job}-{socket.gethostname().partition('.')[0]}")
    return f"{word}-{secrets.token_hex(3)}"


def _unwritable(folder: str, error: OSError) -> RunFolderError:
    return RunFolderError.of(f"the pilot's folder {folder}", error, "TMPDIR")
