"""What a glidein costs with us: its start by the launcher, its end with a job in a real pool, and the bundle's size."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from htcondor_vpn.bundle.build import build
from htcondor_vpn.errors import ProgramMissing
from htcondor_vpn.shipped import GLIDEIN_SCRIPTS, shipped
from htcondor_vpn.testbed import condor_prefix, plan
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.gateway import SiteGateway
from htcondor_vpn.testbed.pool import EXECUTING, CentralManager
from htcondor_vpn.testbed.report import MEASURED, Report
from htcondor_vpn.testbed.site import Site
from htcondor_vpn.testbed.wireguard_prefix import wireguard_go

_NAME = "glidein"
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_DEFAULT_HELPERS = "nft", "iptables"
_ALL_HELPERS = (*_DEFAULT_HELPERS, "wireguard-go", "openconnect")
_START_SECONDS, _COLD_SECONDS, _END_SECONDS = 1.5, 4, 15
_SMALL_MB, _LARGE_MB = 8, 25

#: As GlideinWMS' condor_startup.sh: signals go on as SIGQUIT to the process of the pid file, and nobody waits for it.
_GLIDEIN = """#!/bin/bash
work=$(mktemp -d "$PWD/glide_XXXXXX")
trap 'kill -s QUIT "$(cat "$work/condor_master2.pid")"; exit 0' TERM QUIT
{master} -f -pidfile "$work/condor_master2.pid" &
wait
"""


def measure(report: Report, rounds: int, _: int) -> None:
    report.say("A glidein in the tunnel")
    rounds = max(rounds, 5)
    with Site() as site, ExitStack() as exits:
        folder = site.folder / "glidein"
        folder.mkdir()
        bundle = _sizes(report, folder)
        gateway = exits.enter_context(SiteGateway(site.dmz, site.folder / "gateway"))
        (folder / "htcondor-vpn.conf").write_text(
            f"HTCONDOR_VPN_GATEWAYS = {gateway.endpoints[0]}\nHTCONDOR_VPN_GATEWAY_PIN_FILE = {gateway.pin_file}\n"
        )
        launch = _Launcher(site, folder, bundle, gateway.token_file)
        _starts(report, launch, rounds)
        _ends(report, launch, rounds)


class _Launcher:
    """Runs commands by htvpn-launch on the site's node."""

    def __init__(self, site: Site, folder: Path, bundle: Path, token: Path) -> None:
        self.site, self.folder, self.bundle = site, folder, bundle
        self._script = shipped(GLIDEIN_SCRIPTS) / "htvpn-launch"
        self._token = token

    def environment(self, cache: Path) -> dict[str, str]:
        return {
            "HTVPN_BUNDLE": str(self.bundle), "HTVPN_CONFIG": str(self.folder / "htcondor-vpn.conf"),
            "HTVPN_TOKEN_FILE": str(self._token), "HTVPN_CACHE": str(cache),
        }  # fmt: skip

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["sh", str(self._script), *command]

    def seconds_to_start(self, cache: Path | None) -> float:
        """How long until a command runs: by the launcher with what is unpacked in `cache`, or without it."""
        command = ["cat", "/proc/uptime"]
        environment = self.environment(cache) if cache else {}
        begin = time.monotonic()
        done = self.site.node.run(self.argv(command) if cache else command, env=environment, check=True)
        return float(done.stdout.split()[0]) - begin  # the same clock but for the time suspended


def _sizes(report: Report, folder: Path) -> Path:
    """Has the bundles made, and returns the one that the others are measured with."""
    os.environ["PATH"] = os.pathsep.join((os.environ["PATH"], str(wireguard_go().parent), "/usr/sbin", "/sbin"))
    path = folder / "htcondor-vpn.bundle"
    for what, helpers, with_python, most in (
        ("the package alone", (), False, _SMALL_MB),
        ("with Python, without helpers", (), True, _SMALL_MB),
        ("with Python and every helper", _ALL_HELPERS, True, _LARGE_MB),
        ("with Python, nft and iptables", _DEFAULT_HELPERS, True, None),
    ):
        try:
            size_mb = build(path, helpers, with_python).size_bytes / 1e6
        except ProgramMissing as error:
            report.add(f"size of a bundle {what}", False, str(error), "", f"< {most} MB")
            continue
        wanted = f"< {most} MB" if most else MEASURED
        report.add(f"size of a bundle {what}", most is None or size_mb < most, size_mb, "MB", wanted)
    return path


def _starts(report: Report, launch: _Launcher, rounds: int) -> None:
    warm = launch.folder / "warm"
    launch.seconds_to_start(warm)
    plain = statistics.median(launch.seconds_to_start(None) for _ in range(rounds))
    added = statistics.median(launch.seconds_to_start(warm) for _ in range(rounds)) - plain
    report.add("what the launcher adds to a start", added <= _START_SECONDS, added, "s", f"<= {_START_SECONDS} s")
    cold, dropped = [], False
    for number in range(rounds):
        dropped = _drop_caches(launch.bundle)
        cold.append(launch.seconds_to_start(launch.folder / f"cold-{number}"))
    first = statistics.median(cold)
    how = "caches dropped" if dropped else "of the page cache the bundle alone dropped"
    report.add(f"first start, to be unpacked, {how}", first <= _COLD_SECONDS, first, "s", f"<= {_COLD_SECONDS} s")


def _drop_caches(bundle: Path) -> bool:
    """Has the kernel read everything anew, or where only root may do that, the bundle; returns which."""
    os.sync()
    try:
        _DROP_CACHES.write_text("3\n")
        return True
    except OSError:
        with bundle.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return False


def _ends(report: Report, launch: _Launcher, rounds: int) -> None:
    site = launch.site
    address = str(plan.WORLD["cm"].v4)
    with CentralManager(site.world, condor_prefix.prefix(), site.folder / "pool", address) as pool:
        pilot = pool.pilot(site.folder / "pilot", name=_NAME)
        startup = launch.folder / "glidein_startup.sh"
        startup.write_text(_GLIDEIN.format(master=shlex.join(pilot.command("condor_master"))))
        startup.chmod(0o755)
        others = set(site.processes_of_node())
        ends = [_end(launch, pool, startup, others) for _ in range(rounds)]
    median = statistics.median(ends)
    wanted = f"<= {_END_SECONDS} s"
    report.add("from TERM until nothing is left, with a job", median <= _END_SECONDS, median, "s", wanted)


def _end(launch: _Launcher, pool: CentralManager, startup: Path, others: set[int]) -> float:
    log = launch.folder / "glidein.log"
    process = launch.site.node.start(
        launch.argv([str(startup)]), env=launch.environment(launch.folder / "warm"), cwd=launch.folder, log=log
    )
    try:
        cluster = pool.submit({"executable": "/bin/sleep", "arguments": "1000"})
        pool.wait_for_event(cluster, EXECUTING, 120)
        begin = time.monotonic()
        process.terminate()
        process.wait(4 * _END_SECONDS)
        ours = lambda: True if set(launch.site.processes_of_node()) <= others else None  # noqa: E731
        wait_until("the glidein's processes have gone", _END_SECONDS, ours, 0.02)
        seconds = time.monotonic() - begin
        pool.forget_jobs()
        return seconds
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
