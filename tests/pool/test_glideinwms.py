"""GlideinWMS' own scripts, with ours, in a real pool: for who has a checkout of GlideinWMS, see docs/development.md."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from glidein_side import HERE, SCRIPTS, served
from glidein_side.factory_stage import FactoryStage

from htcondor_vpn.glidein.factory.entry import render
from htcondor_vpn.glidein.factory.site import read_site
from htcondor_vpn.testbed import plan
from htcondor_vpn.testbed.condor_folder import wait_until
from htcondor_vpn.testbed.pool import WAIT_SECONDS
from htcondor_vpn.testbed.proxies import Squid
from htcondor_vpn.testbed.services import url

CHECKOUT = os.environ.get("HTCONDOR_VPN_TEST_GLIDEINWMS", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="HTCONDOR_VPN_TEST_GLIDEINWMS names no checkout of GlideinWMS")

BYTES = 3_000_000
END_SECONDS = 40
#: A busy machine's HTCondor takes its time to leave the pool.
PATIENT = "env", "HTVPN_CLEANUP_SECONDS=60"
OURS = 'GLIDEIN_Entry_Name == "TEST"'
WEB = str(plan.WORLD["http"].v4)


@pytest.fixture
def start_folder(pool, tmp_path):
    """Where the batch system starts the glidein, with the pool's credential."""
    folder = tmp_path / "start"
    folder.mkdir()
    token = folder / "credential_frontend.idtoken"
    token.touch(mode=0o600)
    token.write_text(pool.pilot_token() + "\n")
    return folder


@pytest.fixture
def start(site, pool, start_folder, tmp_path):
    """Starts a glidein of a stage area, its command line behind that of a launcher, and returns its process."""
    processes = []
    before = set(site.processes_of_node())

    def start(stage, address, *options, launcher=()):
        startup = start_folder / "glidein_startup.sh"
        startup.write_bytes(stage.startup.read_bytes())
        startup.chmod(0o755)
        argv = [*launcher, "./glidein_startup.sh", *stage.arguments(address, *options)]
        environ = {"HTVPN_PYTHON": sys.executable, "TMPDIR": str(start_folder)}
        processes.append(site.node.start(argv, cwd=start_folder, env=environ, log=tmp_path / "log"))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
    wait_until("nothing is left", 60, lambda: set(site.processes_of_node()) <= before or None)


@pytest.fixture
def launched(site, services, pool, gateway, bundle, start, start_folder, tmp_path):
    """Starts a glidein in the tunnel, which downloads its files there."""
    for source, name in (
        (SCRIPTS / "htvpn-launch", "htvpn-launch"), (bundle, "htcondor-vpn.bundle"), (gateway.token_file, "pilot.token")
    ):  # fmt: skip
        (start_folder / name).write_bytes(source.read_bytes())
    (start_folder / "htvpn-launch").chmod(0o755)
    (start_folder / "htcondor-vpn.conf").write_text(
        f"HTCONDOR_VPN_GATEWAYS = {gateway.endpoints[0]}\nHTCONDOR_VPN_GATEWAY_PIN_FILE = {gateway.pin_file}\n"
    )
    stage = FactoryStage(Path(CHECKOUT), tmp_path / "stage", pool.collector, pool.instance.prefix / "usr", {})
    with served(site.world, stage.folder, WEB) as address:
        yield lambda *options, launcher=("./htvpn-launch",): start(stage, address, *options, launcher=launcher)


def must_run_a_job_and_end(site, pool, process, start_folder, log, mode):
    try:
        slot = wait_until(
            "the glidein's slot", WAIT_SECONDS,
            lambda: next(iter(pool.slots(f'GLIDEIN_VPN_Up && VpnState == "up" && {OURS}')), None),
        )  # fmt: skip
    except TimeoutError:
        logs = (log, *start_folder.glob("glide_*/log/*Log"), pool.instance.folder / "log/CollectorLog")
        texts = [f"--- {path}\n{path.read_text(errors='replace')}" for path in logs]
        pytest.fail("\n".join([*texts, *(f"--- a slot\n{ad}" for ad in pool.slots())]))
    assert slot["GLIDEIN_VPN_Mode"] == mode
    lines = f"#!/bin/sh\ncurl -sS {url(f'/bytes/{BYTES}')} | wc -c\n"
    cluster = pool.submit({"executable": "job.sh"}, {"job.sh": lines})
    job = pool.wait_for_history(cluster)
    assert job["ExitCode"] == 0, pool.file(cluster, "err.0")
    assert int(pool.file(cluster, "out.0")) == BYTES
    assert job["ChirpNetworkBytesIn"] > BYTES
    begin = time.monotonic()
    process.terminate()
    assert process.wait(2 * END_SECONDS) == 0
    ours = os.fsencode(start_folder)

    def left():
        found = []
        for pid in site.processes_of_node():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += [line for line in [Path(f"/proc/{pid}/cmdline").read_bytes()] if ours in line]
        return found

    wait_until("nothing is left", END_SECONDS, lambda: left() == [] or None)
    assert time.monotonic() - begin < END_SECONDS
    wait_until("the ads are withdrawn", 60, lambda: pool.slots(OURS) == [] or None)
    assert [path.name for path in start_folder.glob("glide_*")] == []


def test_the_launcher(site, pool, launched, start_folder, tmp_path):
    must_run_a_job_and_end(site, pool, launched(), start_folder, tmp_path / "log", "launcher")


@pytest.mark.parametrize(("launcher", "tunnels"), [("executable", 1), ("GLIDEIN_MULTIGLIDEIN_LAUNCHER", 2)])
def test_two_glideins_of_one_batch_job(site, pool, launched, start_folder, tmp_path, launcher, tunnels):
    """By the entry's executable they have one tunnel, each started by the launcher one of its own."""
    two = "-param_GLIDEIN_MULTIGLIDEIN", "2"
    if launcher == "executable":
        process = launched(*two, launcher=[*PATIENT, "./htvpn-launch"])
    else:
        process = launched(*two, f"-param_{launcher}", str(start_folder / "htvpn-launch"), launcher=PATIENT)
    wanted = f"GLIDEIN_VPN_Up && {OURS}"

    def both():
        found = pool.slots(wanted)
        return found if len(found) == 2 else None

    try:
        slots = wait_until("the glideins' slots", WAIT_SECONDS, both)
    except TimeoutError:
        logs = (tmp_path / "log", *start_folder.glob("glidein_dir*/glide_*/log/*Log"))
        texts = [f"--- {path}\n{path.read_text(errors='replace')}" for path in logs]
        pytest.fail("\n".join([*texts, *(f"--- a slot\n{ad}" for ad in pool.slots())]))
    configs = [path.read_text() for path in start_folder.glob("glidein_dir*/glide_*/glidein_config")]
    run_dirs = {re.search("(?m)^GLIDEIN_VPN_RUN_DIR (.+)$", config)[1] for config in configs}
    assert (len(configs), len(run_dirs)) == (2, tunnels)
    lines = f"#!/bin/sh\ncurl -sS {url(f'/bytes/{BYTES}')} | wc -c\n"
    for slot in slots:
        here = {"executable": "job.sh", "requirements": f'regexp("@{slot["Name"].partition("@")[2]}$", TARGET.Name)'}
        cluster = pool.submit(here, {"job.sh": lines})
        assert pool.wait_for_history(cluster, WAIT_SECONDS)["ChirpNetworkBytesIn"] > BYTES
    process.terminate()
    assert process.wait(90) == 0
    wait_until("the ads are withdrawn", 90, lambda: pool.slots(wanted) == [] or None)
    wait_until("the tunnels are gone", 90, lambda: not any(map(os.path.exists, run_dirs)) or None)


@pytest.mark.parametrize("_", range(5))
def test_the_launcher_told_to_end_at_any_moment(pool, launched, start_folder, tmp_path, _):
    seconds = random.uniform(0, 15)
    print(f"told to end after {seconds:.3f} s")
    process = launched(launcher=[*PATIENT, "./htvpn-launch"])
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.terminate()
    process.wait(90)
    assert "Segmentation fault" not in (tmp_path / "log").read_text(errors="replace")
    wait_until("the ads are withdrawn", 60, lambda: pool.slots(OURS) == [] or None)


def test_the_module(site, services, pool, bundle, start, start_folder, tmp_path):
    """Nodes reach but a web proxy: files come by that, and it is the way out of the tunnel."""
    with Squid(site.dmz, tmp_path / "squid", web=True) as squid:
        conf = tmp_path / "htcondor-vpn.conf"
        conf.write_text(
            f"HTCONDOR_VPN_ENGINE = proxy\nHTCONDOR_VPN_PROXIES = {squid.endpoint}\n"
            f"HTCONDOR_VPN_NAME_SERVERS = {plan.WORLD['dns'].v4}\n"
        )
        files = {"htcondor-vpn.bundle": bundle, "htcondor-vpn.conf": conf}
        stage = FactoryStage(Path(CHECKOUT), tmp_path / "stage", pool.collector, pool.instance.prefix / "usr", files)
        with served(site.world, stage.folder, WEB) as address:
            process = start(stage, address, "-proxy", squid.endpoint)
            must_run_a_job_and_end(site, pool, process, start_folder, tmp_path / "log", "module")


@pytest.mark.parametrize("way", ["wrap", "module"])
def test_a_factory_takes_the_entry_that_is_written_for_it(pool, tmp_path, way):
    """Its code reads the XML and writes the submit file, of which condor_submit makes a job."""
    lines = (
        "ENTRY = HPC", "GATEKEEPER = login.example.org", "SITE = Example", f"FOLDER = {tmp_path}", f"WAY = {way}",
        "PROXY_URL = http://proxy.example.org:3128",
    )  # fmt: skip
    (tmp_path / "site").write_text("\n".join(lines) + "\n")
    needed = "htcondor-vpn.bundle", "htcondor-vpn.conf", "pilot.token", "pool.token", "proxy"
    for name in ("htvpn-launch", "glidein_startup.sh", *needed):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o700)
    (tmp_path / "entry").write_text(render(read_site(tmp_path / "site")))
    (tmp_path / "factory").mkdir()
    argv = [sys.executable, str(HERE / "factory_submits.py"), CHECKOUT, str(tmp_path / "entry")]
    subprocess.run([*argv, str(tmp_path / "factory")], check=True, timeout=60)
    submit = (tmp_path / "factory/HPC.condor").read_text()
    told = dict.fromkeys(re.findall(r"\$ENV\((\w+)", submit), "1")
    told |= {"IDTOKENS_FILE": str(tmp_path / "pool.token"), "X509_USER_PROXY": str(tmp_path / "proxy")}
    clean, *argv = pool.instance.command("condor_submit", "-dry-run", "ad", "factory/HPC.condor")
    told = [f"{name}={value}" for name, value in told.items()]
    pool.host.run([clean, argv[0], *told, *argv[1:]], cwd=tmp_path, check=True)
    ad = dict(re.findall(r"(?m)^(\w+) ?= ?(.*)$", (tmp_path / "ad").read_text()))
    secrets = {str(tmp_path / name) for name in ("pilot.token", "pool.token", "proxy")}
    assert set(ad["EncryptInputFiles"].strip('"').split(",")) == secrets
    files = set(ad["TransferInput"].strip('"').split(","))
    if way == "wrap":
        assert ad["Cmd"] == f'"{tmp_path / "htvpn-launch"}"'
        more = {str(tmp_path / name) for name in ("htcondor-vpn.bundle", "htcondor-vpn.conf")}
        assert {name if "/" in name else "" for name in files} == {*secrets, *more, ""}
        assert "glidein_startup.sh" in files
    else:
        assert ad["Cmd"].endswith('glidein_startup.sh"')
        assert files == secrets
