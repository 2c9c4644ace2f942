"""The folder of one pilot: the configuration a glidein would carry, its token, and its names."""

from __future__ import annotations

from pathlib import Path

from htcondor_vpn.testbed.condor_folder import TRUST_DOMAIN, CondorFolder


class PilotConfig(CondorFolder):
    """A pilot called `name` that joins the pool at `collector` (HOST:PORT) with `token`.

    Every pilot behind a gateway has the same inner address, so its daemons carry its name: ads with the same name and
    address would overwrite each other. It has one partitionable slot of `cpus` processors, whatever the machine has.
    """

    def __init__(self, prefix: Path, folder: Path, *, name: str, collector: str, token: str, cpus: int = 8) -> None:
        super().__init__(prefix, folder)
        self.name = name
        self.write_secret("tokens.d/pilot", token + "\n")
        self.write_config("STARTD", collector, _OWN.format(name=name, cpus=cpus, memory_mb=512 * cpus))

    @property
    def slot_name(self) -> str:
        """What its partitionable slot is called in the collector."""
        return f"slot1@{self.name}@{TRUST_DOMAIN}"

    @property
    def requirements(self) -> str:
        """The `requirements` of a job that is to run on this pilot and on no other."""
        return f'regexp("@{self.name}@", TARGET.Name)'

    def use_vpn(self, *knobs: str) -> None:
        """Drops in the project's own configuration, then lines such as `HTCONDOR_VPN_JOB_UP_MBPS = 50`."""
        self.add_shipped("50-htcondor-vpn.conf")
        self.add(*knobs, name="60-knobs.conf")


_OWN = f"""\
# A name without @ would get the host's name behind it.
MASTER_NAME = {{name}}@{TRUST_DOMAIN}
STARTD_NAME = {{name}}@{TRUST_DOMAIN}
UID_DOMAIN = {{name}}.{TRUST_DOMAIN}
# Nobody can connect to a pilot; whoever wants to talk to it asks the collector, which has the pilot call back.
CCB_ADDRESS = $(COLLECTOR_HOST)
SHARED_PORT_PORT = 0
# On one machine FS would succeed too, as the local user, who may do nothing in the pool.
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
# Whoever holds the match's or the claim's secret comes from the pool.
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
NUM_CPUS = {{cpus}}
MEMORY = {{memory_mb}}
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = true
START = true
RunBenchmarks = false
# A starter that does not end when it is told to is not waited for.
KILLING_TIMEOUT = 5
STARTD_DETECT_GPUS = false
UPDATE_INTERVAL = 15
UPDATE_OFFSET = 0
STARTER_INITIAL_UPDATE_INTERVAL = 2
STARTER_UPDATE_INTERVAL = 5
STARTER_DEBUG = D_FULLDEBUG:1
STARTD_DEBUG = D_FULLDEBUG:1
"""
