"""htvpn-setup in a glidein: what it reports for each failure, and what it does where the tunnel is there already."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from glidein_side import SCRIPTS, Stage, failure_type

from htcondor_vpn import errors
from htcondor_vpn.pilot.launch import LIBEXEC
from htcondor_vpn.pilot.run_folder import RunFolder
from htcondor_vpn.publish.state import State

TYPES = {
    "Config": {64, 66, 76, 77, 78, 79, 84, 85, 86, 91},
    "Network": {68, 69},
    "Corruption": {65},
}

#: In the place of condor_startup.sh: says what HTCondor would be told.
LAST = """#!/bin/bash
echo "=== last script ==="
cat condor_config.d/* condor_vars.lst
cat htvpn/job-wrapper
grep ^GLIDEIN_VPN_ glidein_config
"""


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    stage.attribute("HTVPN_SETUP_SECONDS", 0)
    (stage.folder / "condor_startup.sh").write_text(LAST)
    return stage


def run(stage, **environ):
    environ = {"PATH": os.defpath, **environ}
    return subprocess.run(
        stage.argv, cwd=stage.start_folder, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def program(stage, text):
    path = stage.start_folder / "htcondor-vpn"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    stage.attribute("HTVPN_BUNDLE", path)


def failed_as(done, type_):
    assert done.returncode == 1
    assert failure_type(done.stdout) == type_, done.stdout + done.stderr
    assert "last script" not in done.stdout
    return done.stdout


def exit_codes():
    return {kind.exit_code for kind in errors._kinds(errors.VpnError)} | {errors.VpnError.exit_code, 65, 126, 127, 137}


@pytest.mark.parametrize("code", sorted(exit_codes()))
def test_each_exit_code_has_its_type(stage, code):
    program(stage, f"echo 'the <cause>: a \"remedy\" & more' >&2; exit {code}")
    stage.add_module()
    wanted = next((type_ for type_, codes in TYPES.items() if code in codes), "WN_Resource")
    said = failed_as(run(stage), wanted)
    assert f"no tunnel (code {code}): the cause: a remedy  more\n" in said


@pytest.mark.parametrize(("code", "times"), [(69, 2), (78, 1)])
def test_what_may_pass_is_tried_again(stage, code, times):
    program(stage, f"echo once >>count; echo why >&2; exit {code}".replace("count", f"{stage.folder}/count"))
    stage.attribute("HTVPN_SETUP_SECONDS", 14)  # once after 5 s, and not again after 10
    stage.add_module()
    failed_as(run(stage), "Network" if code == 69 else "Config")
    assert (stage.folder / "count").read_text() == "once\n" * times


@pytest.mark.parametrize("jump", [10800, -10800])
def test_a_clock_that_jumps_meanwhile_changes_nothing(stage, tmp_path, jump):
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    program(stage, f"echo once >>{stage.folder}/count; echo {jump:+d} >{clock}.new; mv {clock}.new {clock}; exit 69")
    stage.attribute("HTVPN_SETUP_SECONDS", 14)
    stage.add_module()
    told = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    failed_as(run(stage, LD_PRELOAD=str(library), **told), "Network")
    assert (stage.folder / "count").read_text() == "once\n" * 2


def test_an_end_without_a_tunnel_is_a_failure_too(stage):
    program(stage, "exit 0")
    stage.add_module()
    failed_as(run(stage), "WN_Resource")


def test_no_tunnel_is_tried_again_for_a_glidein_that_has_ended(stage):
    program(stage, f"echo once >>{stage.folder}/count; kill -KILL $(sed -n 's/^GLIDEIN_STARTUP_PID //p' "
                   f"{stage.start_folder}/glide_*/glidein_config); exit 69")  # fmt: skip
    stage.attribute("HTVPN_SETUP_SECONDS", 120)
    stage.add_module()
    begin = time.monotonic()
    assert run(stage).returncode == -9  # its output ends when the last of its processes does
    assert time.monotonic() - begin < 60
    assert (stage.folder / "count").read_text() == "once\n"


def test_a_bundle_that_is_not_there(stage):
    stage.add_module()
    assert "HTVPN_BUNDLE" in failed_as(run(stage), "Config")


def test_a_global_file_does_nothing_where_no_tunnel_is_wanted(stage):
    stage.add("main", SCRIPTS / "htvpn-setup", "exec")
    stage.add("main", SCRIPTS / "htvpn-status", "exec", period=5)
    done = run(stage)
    assert "=== last script ===" in done.stdout, done.stdout + done.stderr
    assert "GLIDEIN_VPN_" not in done.stdout
    assert "Up =" not in done.stdout


def test_a_global_file_where_one_is_wanted(stage):
    stage.attribute("GLIDEIN_USE_VPN", "True")
    program(stage, "exit 69")
    stage.add_module("main")
    failed_as(run(stage), "Network")


@pytest.fixture
def run_dir(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.fill(LIBEXEC)
    yield folder.path
    folder.release()


def test_a_tunnel_that_is_there_is_only_told_of(stage, run_dir):
    State(state="up", engine="stream", gateway="gateway:8443", up_mbps=90, down_mbps=100, latency_ms=1).write(run_dir)
    stage.add_module()
    done = run(stage, HTCONDOR_VPN_RUN_DIR=str(run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for line in (
        "Up = True", 'State = "up"', "UpMbps = 90.000", "DownMbps = 100.000", 'Gateway = "gateway:8443"',
        "LatencyMs = 1.000", "GLIDEIN_VPN_Mode S - + N Y -", "GLIDEIN_VPN_Mode launcher",
    ):  # fmt: skip
        assert line in lines, done.stdout
    assert f"exec '{run_dir}/libexec/job-wrapper'" in done.stdout
    assert list(stage.start_folder.iterdir()) == []


@pytest.mark.parametrize("state", ["down", "stopped"])
def test_a_tunnel_that_is_there_and_not_up(stage, run_dir, state):
    State(state=state).write(run_dir)
    stage.add_module()
    failed_as(run(stage, HTCONDOR_VPN_RUN_DIR=str(run_dir)), "Network")


def test_a_run_folder_that_is_not_there(stage, tmp_path):
    stage.add_module()
    failed_as(run(stage, HTCONDOR_VPN_RUN_DIR=str(tmp_path / "gone")), "WN_Resource")


def test_the_shell_of_the_scripts_is_bash():
    for name in ("htvpn-setup", "htvpn-status"):
        subprocess.run(["bash", "-n", SCRIPTS / name], check=True)
