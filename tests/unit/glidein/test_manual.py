import os

import pytest

from htcondor_vpn.errors import ConfigUnreadable, ProgramMissing, TokenUnusable, UsageError
from htcondor_vpn.glidein.batch_script import Batch, script
from htcondor_vpn.glidein.manual import check, read_command

ARGUMENTS = (
    "-factory F -name N -entry E -clientname C -web http://factory/stage -sign 1 -descript description.x.cfg "
    "-dir TMPDIR -v fast -param_GLIDEIN_Client C.dot,main"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "glidein_startup.sh").write_text("#!/bin/sh\n")
    (tmp_path / "command").write_text(f"#!/bin/sh\n\n# glidein_startup.sh command\n./glidein_startup.sh {ARGUMENTS}\n")
    (tmp_path / "bundle").write_text("#!/bin/sh\n")
    (tmp_path / "pin").write_text("pin-sha256:" + "A" * 43 + "=\n")
    knobs = f"HTCONDOR_VPN_GATEWAYS = gateway.example.org:8443\nHTCONDOR_VPN_GATEWAY_PIN_FILE = {tmp_path / 'pin'}\n"
    (tmp_path / "site.conf").write_text(knobs)
    for name in ("pilot.token", "credential_pool.proxy"):
        os.close(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT, 0o600))
        (tmp_path / name).write_text("secret")
    return tmp_path


def checked(folder, **changed):
    words = {
        "command_file": folder / "command", "bundle": folder / "bundle", "config": folder / "site.conf",
        "token": folder / "pilot.token", "credentials": [folder / "credential_pool.proxy"], "seconds": 3600, **changed,
    }  # fmt: skip
    return check(**words)


def test_the_script_runs_the_command_in_the_tunnel(folder):
    glidein = checked(folder)
    assert glidein.warnings == ()
    text = script(Batch.SLURM, glidein.job(time_seconds=3600, lead_seconds=300, cpus=8))
    assert f"./htvpn-launch ./glidein_startup.sh {ARGUMENTS.replace('-dir TMPDIR', '-dir .')} 9>&- &" in text
    assert f"install -m 600 {folder}/pilot.token pilot.token" in text
    assert f"install -m 600 {folder}/credential_pool.proxy credential_pool.proxy" in text
    assert "export HTVPN_DELETE_TOKEN=1\n" in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("broken", "error", "says"),
    [
        (lambda f: (f / "command").unlink(), ConfigUnreadable, "cannot be read"),
        (lambda f: (f / "command").write_text("#!/bin/sh\n"), UsageError, "0 commands"),
        (lambda f: (f / "command").write_text("./glidein_startup.sh 'x\n"), UsageError, "quotation"),
        (lambda f: (f / "command").write_text("./glidein_startup.sh -name N\n"), UsageError, "-factory"),
        (lambda f: (f / "glidein_startup.sh").unlink(), UsageError, "there is no"),
        (lambda f: (f / "bundle").unlink(), ProgramMissing, "no bundle"),
        (lambda f: (f / "pin").unlink(), ConfigUnreadable, "pin"),
        (lambda f: (f / "pilot.token").chmod(0o644), TokenUnusable, "others"),
        (lambda f: (f / "credential_pool.proxy").write_text(""), TokenUnusable, "empty"),
    ],
)
def test_what_the_node_would_find_out_too_late(folder, broken, error, says):
    broken(folder)
    with pytest.raises(error, match=says):
        checked(folder)


def test_what_is_worth_a_word(folder):
    arguments = ARGUMENTS.replace("TMPDIR", "/scratch")
    (folder / "command").write_text(f"./glidein_startup.sh {arguments} -proxy http://p:3128\n")
    assert [warning.partition(":")[0] for warning in checked(folder, credentials=[]).warnings] == [
        "the glidein's folder is /scratch",
        "it downloads by the proxy http",
        "there is no credential for the pool",
    ]


def test_a_whole_path_stays(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/command").write_text(f"{folder}/glidein_startup.sh {ARGUMENTS}\n")
    startup, arguments = read_command(folder / "elsewhere/command")
    assert startup == folder / "glidein_startup.sh"
    assert arguments[:2] == ("-factory", "F")
