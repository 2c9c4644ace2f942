"""The site for somebody who tries things by hand: a gateway and a pool that run, and a home with what a pilot needs.

The names are those of the pages, so that what is written there can be typed here.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from htcondor_vpn.testbed import condor_prefix, plan
from htcondor_vpn.testbed.commands import write_command
from htcondor_vpn.testbed.gateway import PORT, SiteGateway
from htcondor_vpn.testbed.pool import CentralManager
from htcondor_vpn.testbed.sandbox import TEMPORARY
from htcondor_vpn.testbed.site import Site

#: What an interactive shell says first.
GREETING = f"""\
`node`, `dmz` and `world` give a shell on that host; with words behind, they run a command there.
  dmz    a gateway, {plan.GATEWAY_NAME}:{PORT}; its log is gateway.log
  world  a pool, {plan.POOL_NAME}; condor_status, condor_submit and the others are at hand, and ask it
  node   a pilot for both: node bash pilot/pilot.slurm 2>pilot.log &
All of it, this home folder too, is gone when you leave."""

_BASHRC = """\
case $HOSTNAME in node|dmz|world) PS1='\\h:\\w\\$ ' ;; *) PS1='site:\\w$ ' ;; esac
"""

#: The script of docs/hpc-user.md, for what is in the home.
_PILOT = f"""\
#!/bin/bash
#SBATCH --job-name=pilot
#SBATCH --nodes=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300        # five minutes before the end: a graceful shutdown of HTCondor

# exec: the batch system's signals reach htcondor-vpn, which passes them on to condor_master.
exec htcondor-vpn glidein condor --condor ~/condor --pool {plan.POOL_NAME} --idtoken ~/pilot/pool.token \\
    --cpus 4 --memory-mb 4000 --lead 300 \\
    --gateway {plan.GATEWAY_NAME}:{PORT} --pin-file ~/pilot/gateway.pin --token-file ~/pilot/pilot.token
"""


@contextmanager
def furnished(site: Site, commands: Path) -> Iterator[Path]:
    """Within, a gateway and a pool run; yields a home folder with what a pilot needs for both.

    HTCondor's tools are put into the folder `commands`: they ask the pool, on its own host. Raises what the daemons'
    starts raise.
    """
    home = TEMPORARY / "home"
    pilot = home / "pilot"
    pilot.mkdir(parents=True)
    (home / ".bashrc").write_text(_BASHRC)
    prefix = condor_prefix.prefix()
    (home / "condor").symlink_to(prefix / "usr")
    names = [word for name in (plan.GATEWAY_NAME, *plan.DMZ_INSIDE) for word in ("--name", str(name))]
    gateway = SiteGateway(site.dmz, home, *names, state_folder=home / ".htcondor-vpn-gateway")
    gateway.token_file = pilot / "pilot.token"
    gateway.token("add", "my-pilots", "-o", str(gateway.token_file))
    with gateway, CentralManager(site.world, prefix, home / "pool", str(plan.WORLD["cm"].v4)) as pool:
        shutil.copy(gateway.pin_file, pilot)
        pool_token = pilot / "pool.token"
        pool_token.touch(mode=0o600)
        pool_token.write_text(pool.pilot_token() + "\n")
        (pilot / "pilot.slurm").write_text(_PILOT)
        environment = {name: pool.instance.environment[name] for name in ("CONDOR_CONFIG", "PATH")}
        enter = site.world.launcher(environment)
        for tool in sorted((*prefix.glob("usr/bin/condor_*"), *prefix.glob("usr/sbin/condor_*"))):
            write_command(commands / tool.name, f'set -- {shlex.quote(str(tool))} "$@"\n{enter}')
        yield home
