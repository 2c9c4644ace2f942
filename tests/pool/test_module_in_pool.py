"""The in-glidein module with real HTCondor, on a node that reaches but a web proxy, in a pool with job hooks.

The proxy is what the glidein's files come by, and the tunnel's way out.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from glidein_side import STARTUP, Stage, served

from htcondor_vpn.bundle.build import build
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.pool import WAIT_SECONDS
from htcondor_vpn.testbed.proxies import Squid
from htcondor_vpn.testbed.services import url

NAME = "module"
BYTES = 3_000_000

#: As in GlideinWMS' condor_config; the port is then HTCondor's own default.
NO_SHARED_PORT = "USE_SHARED_PORT = False", "SHARED_PORT_PORT = 9618"

#: The pool's own hooks, as the OSPool has some: of the kind that ours are, and of another.
HOOK = """#!/bin/sh
grep -q '^ClusterId' && echo "{kind} $(id -u)" >>{folder}/hooks
echo 'PoolHook{kind} = "ran"'
"""


JOB = f"""#!/bin/sh
echo "$IN_GLIDEIN_WRAPPER"
readlink /proc/self/ns/net
curl -sS {url(f"/bytes/{BYTES}")} | wc -c
"""


@pytest.fixture(scope="module")
def suite():
    return "trixie"


@pytest.fixture
def stage_and_proxy(site, services, pool, tmp_path):
    """What the factory lists for the entry, and the folder that the batch system starts the glidein in."""
    stage = Stage(tmp_path)
    config = pool.pilot(tmp_path / "pilot", name=NAME)
    lines = [(config.folder / "condor_config").read_text(), "STARTER_JOB_HOOK_KEYWORD = OSPOOL", *NO_SHARED_PORT]
    for kind in ("PREPARE_JOB_BEFORE_TRANSFER", "PREPARE_JOB"):
        hook = tmp_path / kind
        hook.write_text(HOOK.format(kind=kind, folder=tmp_path))
        hook.chmod(0o755)
        lines.append(f"OSPOOL_HOOK_{kind} = {hook}")
    stage.add_condor(pool.instance.prefix / "usr", "\n".join(lines) + "\n")
    build(tmp_path / "htcondor-vpn.bundle", ["nft", "iptables"], with_python=False)
    (tmp_path / "fragment").write_text('export IN_GLIDEIN_WRAPPER="yes in $(readlink /proc/self/ns/net)"\n')
    with Squid(site.dmz, tmp_path / "squid", web=True) as squid:
        (tmp_path / "htcondor-vpn.conf").write_text(
            f"HTCONDOR_VPN_ENGINE = proxy\nHTCONDOR_VPN_PROXIES = {squid.endpoint}\n"
            f"HTCONDOR_VPN_NAME_SERVERS = {plan.WORLD['dns'].v4}\n"
        )
        stage.add("main", tmp_path / "fragment", "wrapper")
        stage.add_module("entry", tmp_path / "htcondor-vpn.bundle", tmp_path / "htcondor-vpn.conf")
        yield stage, squid


@pytest.fixture
def stage(stage_and_proxy):
    return stage_and_proxy[0]


@pytest.fixture
def glidein(site, stage_and_proxy, tmp_path):
    stage, squid = stage_and_proxy
    environ = {"HTVPN_PYTHON": sys.executable, "TMPDIR": str(stage.start_folder)}
    with served(site.world, stage.folder, str(plan.WORLD["http"].v4)) as address:
        argv = ["bash", str(STARTUP), *stage.arguments(address, "-proxy", squid.endpoint)]
        process = site.node.start(argv, cwd=stage.start_folder, env=environ, log=tmp_path / "log")
        yield process
        process.kill()
        process.wait()


def left_in(site, folder):
    found = []
    for pid in site.processes():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return [line for line in found if os.fsencode(folder) in line]


def test_a_job_in_a_glidein_with_the_module(site, pool, stage, glidein, tmp_path):
    try:
        ad = pool.wait_for_startd(NAME, constraint='GLIDEIN_VPN_Up && GLIDEIN_VPN_State == "up" && VpnState == "up"')
    except TimeoutError:
        pytest.fail((tmp_path / "log").read_text())
    assert ad["GLIDEIN_VPN_Mode"] == "module"
    assert ad.eval("GLIDEIN_VPN_Engine") == "proxy"
    cluster = pool.submit({"executable": "job.sh"}, {"job.sh": JOB})
    job = pool.wait_for_history(cluster)
    assert job["ExitCode"] == 0, pool.file(cluster, "err.0")
    wrapper, network, count = pool.file(cluster, "out.0").decode().split("\n")[:3]
    assert count.strip() == str(BYTES)
    assert wrapper == f"yes in {network}", "GlideinWMS' wrapper runs in the job's network"
    assert job["ChirpNetworkBytesIn"] > BYTES
    hooks = [line.split()[0] for line in (tmp_path / "hooks").read_text().splitlines()]
    assert hooks == ["PREPARE_JOB_BEFORE_TRANSFER", "PREPARE_JOB"], "the pool's hooks ran"
    # Ours ran too: a job that asks for what there is not is held by it.
    asks = pool.submit({"executable": "/bin/true", "+VpnBandwidthMbps": "-1"})
    wait_until("our hook holds a job", WAIT_SECONDS, lambda: (pool.queue(asks) or {}).get("JobStatus") == 5 or None)
    begin = time.monotonic()
    glidein.terminate()
    assert glidein.wait(60) == 0
    wait_until("nothing is left", 60, lambda: left_in(site, stage.start_folder) == [] or None)
    assert time.monotonic() - begin < 40
    assert "EXITING WITH STATUS 0" in (tmp_path / "pilot/log/MasterLog").read_text(), "it could end by itself"
    wait_until("the ads have gone", 60, lambda: pool.slots(f'regexp("{NAME}", Name)') == [] or None)
    assert not [path for path in stage.start_folder.iterdir() if path.name.startswith(("glide_", "htcondor-vpn-"))]
