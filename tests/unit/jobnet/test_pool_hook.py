"""The hooks of a pilot whose pool has hooks itself: both run, and the pool's is heard first."""

import os
import subprocess

import pytest

from htcondor_vpn.pilot.launch import LIBEXEC

AD = "ClusterId = 5\nVpnBandwidthMbps = 10\n"

#: condor_config_val, which has to be asked for what is there without our hooks.
CONFIG_VAL = """#!/bin/sh
[ "$HTCONDOR_VPN_POOL_HOOKS" = 1 ] || exit 9
case $1 in
STARTER_JOB_HOOK_KEYWORD) echo OSPOOL ;;
OSPOOL_HOOK_{knob}) echo {folder}/theirs ;;
*) exit 1 ;;
esac
"""


@pytest.fixture(params=["prepare-job", "update-job-info"])
def hook(request, tmp_path):
    """Runs the pool's hook of the given text and ours, and returns the outcome; ours copies its job ad."""
    knob = {"prepare-job": "PREPARE_JOB_BEFORE_TRANSFER", "update-job-info": "UPDATE_JOB_INFO"}[request.param]

    def write(name, text):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    write(f"pool-{request.param}", LIBEXEC[f"pool-{request.param}"].read_text())
    write(request.param, f"#!/bin/sh\ncat >{tmp_path}/ours.ad\necho 'Ours = 1'\n")
    write("condor_config_val", CONFIG_VAL.format(knob=knob, folder=tmp_path))

    def run(theirs):
        write("theirs", f"#!/bin/sh\ncat >{tmp_path}/theirs.ad\n{theirs}\n")
        done = subprocess.run(
            [tmp_path / f"pool-{request.param}"], input=AD, capture_output=True, text=True, timeout=30, check=False,
            env={"PATH": f"{tmp_path}:{os.defpath}", "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        assert not list(tmp_path.glob("tmp.*"))
        return done

    run.folder = tmp_path
    run.name = request.param
    return run


def test_both_run_with_the_job_ad(hook):
    done = hook("echo 'Theirs = 1'; echo 'HookStatusCode = 0'")
    assert (done.returncode, done.stdout) == (0, "Theirs = 1\nHookStatusCode = 0\nOurs = 1\n")
    assert (hook.folder / "theirs.ad").read_text() == AD
    assert (hook.folder / "ours.ad").read_text() == AD


@pytest.mark.parametrize(("theirs", "code"), [("echo 'HookStatusCode = 190'", 0), ("exit 3", 3)])
def test_a_job_that_the_pools_hook_turns_away(hook, theirs, code):
    done = hook(theirs)
    assert done.returncode == code
    assert "Ours" not in done.stdout
    assert not (hook.folder / "ours.ad").exists()


def test_a_pools_hook_that_cannot_be_found_out(hook):
    (hook.folder / "condor_config_val").write_text("#!/bin/sh\nexit 1\n")
    done = hook("")
    assert done.returncode == 0
    assert "condor_config_val" in done.stderr
    assert ("HookStatusCode = 300" in done.stdout) == (hook.name == "prepare-job")
    assert not (hook.folder / "ours.ad").exists()
